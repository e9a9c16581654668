"""PDFed's protocol on quadratics: closed forms, votes and choices replayed from the ledger, and peers that fail."""

import itertools
import json
import logging
import re

import numpy as np
import pytest
import torch

from fedddpm_app.algorithms import get_algorithm
from fedddpm_app.algorithms.pdfed import PDFed, score, train_peer
from fedddpm_app.config import ConfigError, load_config
from fedddpm_app.diffusion.images import to_uint8
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.messages import conversation
from fedddpm_app.federation.start_notes import start_notes
from fedddpm_app.inprocess.grid import InProcessGrid
from fedddpm_app.inprocess.simulate import simulate
from fedddpm_app.peers.mail import MATCHED, NUMBER, TRAIN
from fedddpm_app.peers.score import Score
from fedddpm_app.peers.votes import unpack_scores
from fedddpm_app.training.actions import ActionAnswer, ActionRequest, ClientAction
from fedddpm_app.training.trainer import create_trainer
from fedddpm_app.weights import num_bytes
from tests.algorithms.peers import SAME_SPEED, Failing, Points, Shuffled, loss_at, on, run_peers, train_point
from tests.algorithms.problems import (
    CLIENTS,
    RATE,
    ROUNDS,
    STEPS,
    Point,
    gradient,
    gradient_steps,
    make_clients,
    quadratic,
    run,
    same,
    start,
)
from tests.compare.test_plan import plan

FOUR = make_clients(3, 5, 2, 4)


def trained(x, client, steps=STEPS):
    return gradient_steps(x, steps, RATE, lambda point: gradient(client, point))


# ---- closed forms ----------------------------------------------------------------------------


def test_two_peers_of_equal_speed_that_merge_are_gossip_averaging():
    pair = CLIENTS[:2]
    x = [trained(start(), client) for client in pair]
    for _ in range(4):
        x = [trained((x[0] + x[1]) / 2, client) for client in pair]
    ended = run_peers(pair, rounds=5, node="merge", **SAME_SPEED)
    assert same(ended.models[0], x[0], 1e-12)
    assert same(ended.models[1], x[1], 1e-12)
    assert not same(run_peers(pair, rounds=5, node="select", **SAME_SPEED).models[0], x[0], 1e-3)


@pytest.mark.parametrize("node", ["select", "merge"])
def test_one_peer_trains_on_alone(node):
    alone = run_peers(CLIENTS[:1], node=node, batch_size=2)
    assert (alone.final == run("local-only", CLIENTS[:1], batch_size=2)).all()
    full = run_peers(CLIENTS[:1], node=node)
    assert same(full.final, trained(start(), CLIENTS[0], ROUNDS * STEPS), 1e-12)


def test_select_trains_on_from_the_model_with_the_lowest_value_in_numpy():
    """Equal speeds: after each moment all have voted on all three; a = 1 / 4. No author votes on its own for others."""
    x = [trained(start(), client) for client in CLIENTS]
    sizes = np.array([3.0, 5.0, 2.0])
    for _ in range(ROUNDS - 1):
        scores = np.array([[loss_at(torch.tensor(point), client) / 2 for point in x] for client in CLIENTS])
        chosen = []
        for i in range(3):
            values = scores[i] / scores[i].mean() / 4
            for k in range(3):
                voters = [v for v in range(3) if v not in (i, k)]
                votes = [scores[v, k] / scores[v, np.arange(3) != v].mean() for v in voters]
                values[k] += 3 / 4 * np.average(votes, weights=sizes[voters])
            chosen.append(int(np.argmin(values)))
        x = [trained(x[k], client) for k, client in zip(chosen, CLIENTS, strict=True)]
    ended = run_peers(own_vote=0.25, **SAME_SPEED)
    assert all(same(ended.models[i], x[i], 1e-12) for i in range(3))


def test_a_complete_run_has_all_its_steps_whatever_the_speeds():
    ended = run_peers(FOUR, rounds=4, speed_spread=8.0)
    assert [len(ended.of("submission", peer)) for peer in range(4)] == [4] * 4
    assert sum(entry["steps"] for entry in ended.of("submission")) == 4 * 4 * STEPS
    times = [entry["time"] for entry in ended.of("submission")]
    assert times == sorted(times)
    assert [sum(row["pdfed/submissions"].values()) for row in ended.history] == [4, 8, 12, 16]
    uneven = [row["pdfed/submissions"] for row in ended.history[:-1]]
    assert any(max(numbers.values()) > min(numbers.values()) + 1 for numbers in uneven)  # the fast do not wait


def test_the_number_of_steps_sets_the_time_of_a_training():
    ended = run_peers(local_steps=[2, 4, 6], rounds=2, **SAME_SPEED)
    first = {entry["peer"]: entry["time"] for entry in ended.of("submission") if entry["number"] == 1}
    assert first == {0: 2.0, 1: 4.0, 2: 6.0}


# ---- votes and choices -----------------------------------------------------------------------


def mean_of(votes, voter, authors):
    return np.mean([votes[voter, author] for author in authors if (voter, author) in votes])


def replayed(ledger, own_vote, merges=False):
    """Author and value of each choice, from the entries before it, and whether the own scores alone would differ."""
    candidates, votes, examples, found = {}, {}, {}, []
    for entry in ledger:
        if entry["kind"] == "submission":
            votes = {pair: vote for pair, vote in votes.items() if pair[1] != entry["peer"]}
            candidates.pop(entry["peer"], None)
            candidates[entry["peer"]] = entry["weights"]
        elif entry["kind"] == "vote":
            votes[entry["peer"], entry["author"]] = entry["score"]
            examples[entry["peer"]] = entry["num_examples"]
        elif entry["kind"] == "choice":
            me = entry["peer"]
            values, own = {}, {}
            for author in candidates:
                if merges and author == me and len(candidates) > 1:
                    continue
                own[author] = votes[me, author] / mean_of(votes, me, candidates)
                others = [v for v in examples if v not in (me, author) and (v, author) in votes]
                given = [votes[v, author] / mean_of(votes, v, [of for of in candidates if of != v]) for v in others]
                mean = np.average(given, weights=[examples[v] for v in others]) if others else own[author]
                values[author] = own_vote * own[author] + (1 - own_vote) * mean
            best = min(values, key=values.get)
            found.append((best, values[best], min(own, key=own.get) != best))
    return found


@pytest.mark.parametrize("clock", ["virtual", "arrival"])
@pytest.mark.parametrize("node", ["select", "merge"])
def test_every_choice_follows_from_the_votes_before_it(monkeypatch, clock, node):
    """Also of others: some choices are not those of the own scores."""
    on(monkeypatch, Shuffled, seed=3)
    ended = run_peers(FOUR, rounds=4, clock=clock, node=node, own_vote=0.0, validators=1)
    choices = replayed(ended.ledger, 0.0, node == "merge")
    assert len(choices) == len(ended.of("choice")) >= 8
    assert [entry["author"] for entry in ended.of("choice")] == [author for author, _, _ in choices]
    assert [entry["value"] for entry in ended.of("choice")] == pytest.approx([value for _, value, _ in choices])
    assert any(differs for _, _, differs in choices)


def test_a_peer_votes_once_on_each_candidate_and_before_it_chooses():
    ended = run_peers(FOUR, rounds=4, speed_spread=4.0)
    votes = [(entry["peer"], entry["submission"]) for entry in ended.of("vote")]
    assert len(votes) == len(set(votes))
    assert {entry["peer"] for entry in ended.of("vote")} == {0, 1, 2, 3}


def test_validators_vote_at_once_and_never_submit():
    ended = run_peers(FOUR, validators=2, speed_spread=3.0)
    assert {entry["peer"] for entry in ended.of("submission")} == {0, 1}
    assert {entry["peer"] for entry in ended.of("choice")} == {0, 1}
    assert sorted(ended.models) == [0, 1]
    for digest in (entry["weights"] for entry in ended.of("submission")):
        voters = {entry["peer"] for entry in ended.of("vote") if entry["submission"] == digest}
        assert voters >= {2, 3}
        first = next(k for k, entry in enumerate(ended.ledger) if entry.get("weights") == digest and k)
        following = [entry["kind"] for entry in ended.ledger[first + 1 :]]
        until = following.index("choice") if "choice" in following else len(following)
        before = ended.ledger[first + 1 : first + 1 + until]
        assert {entry["peer"] for entry in before if entry.get("submission") == digest} >= {2, 3}
    assert sum(row["train/num_examples"] for row in ended.history) == ROUNDS * (3 + 5)


def test_peers_that_have_finished_only_vote():
    ended = run_peers(FOUR, rounds=3, speed_spread=8.0)
    last = {peer: ended.of("submission", peer)[-1]["time"] for peer in range(4)}
    fastest = min(last, key=last.get)
    later = [entry["weights"] for entry in ended.of("submission") if entry["time"] > last[fastest]]
    assert later
    assert {entry["submission"] for entry in ended.of("vote", fastest)} >= set(later)


def test_novelty_that_is_left_out_of_the_choice_is_reported_all_the_same(monkeypatch):
    monkeypatch.setattr("tests.algorithms.peers.Score", lambda d, *_: Score(d, 900.0 - d, 2, 2, [0, 0]))
    chosen = {}
    for novelty in (True, False):
        ended = run_peers(rounds=2, novelty=novelty, **SAME_SPEED)
        row = ended.history[-1]
        assert row["pdfed/novelty"] == pytest.approx(900.0 - row["pdfed/distance"])
        assert row["pdfed/score"] == pytest.approx(450.0 if novelty else row["pdfed/distance"] / 2)
        assert row["pdfed/nearest_distance"] <= row["pdfed/distance"] + 1e-12
        chosen[novelty] = [entry["author"] for entry in ended.of("choice")]
    assert chosen[True] != chosen[False]


# ---- the order of arrival --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("node", ["select", "merge"])
def test_the_order_of_arrival_changes_nothing_under_the_virtual_clock(monkeypatch, node):
    settings = {"rounds": 3, "node": node, "batch_size": 2, "validators": 1, "speed_spread": 3.0}
    whole = run_peers(FOUR, **settings)
    for seed in range(3):
        on(monkeypatch, Shuffled, seed=seed)
        again = run_peers(FOUR, **settings)
        assert again.ledger == whole.ledger
        assert all((again.models[peer] == model).all() for peer, model in whole.models.items())
    arrived = run_peers(FOUR, clock="arrival", **settings)
    times = [0.0, *(entry["time"] for entry in arrived.of("submission"))]
    assert all(earlier < later for earlier, later in itertools.pairwise(times))
    assert [entry["peer"] for entry in arrived.of("submission")] != [e["peer"] for e in whole.of("submission")]


def test_the_same_seed_repeats_and_another_one_does_not():
    ledgers = [run_peers(seed=seed, batch_size=2).ledger for seed in (3, 3, 4)]
    assert ledgers[0] == ledgers[1]
    assert [e["time"] for e in ledgers[0] if e["kind"] == "submission"] != [
        e["time"] for e in ledgers[2] if e["kind"] == "submission"
    ]


# ---- peers that fail -------------------------------------------------------------------------


def test_a_peer_that_vanishes_costs_nobody_else_anything(monkeypatch):
    whole = run_peers(FOUR, rounds=4, speed_spread=3.0)
    on(monkeypatch, Failing, fails=staticmethod(lambda peer, action, count: (peer, action) == (2, TRAIN) and count > 1))
    ended = run_peers(FOUR, rounds=4, speed_spread=3.0, max_round_retries=0)
    assert len(ended.of("submission", 2)) == 1
    for peer in (0, 1, 3):
        times, before = ([entry["time"] for entry in each.of("submission", peer)] for each in (ended, whole))
        assert times == before  # nobody has waited
    left = ended.of("left", 2)
    assert left[0]["reason"] == "its node is gone or did not answer in time"
    position = ended.ledger.index(left[0])
    assert ended.ledger[:position] == whole.ledger[:position]
    digest = ended.of("submission", 2)[0]["weights"]
    assert any(entry["submission"] == digest for entry in ended.of("vote"))  # it stays a candidate
    assert [entry["author"] for entry in ended.of("choice")] == [author for author, _, _ in replayed(ended.ledger, 0.5)]
    assert ended.history[-1]["train/left_out"]["2"].startswith("its node is gone")


class Hung(InProcessGrid):
    """Node 2 never answers a request to train."""

    def pull_messages(self, message_ids):
        hung = {
            message_id
            for message_id, message in self._waiting.items()
            if message.metadata.dst_node_id == 1002 and message.metadata.message_type.endswith(TRAIN)
        }
        return super().pull_messages([*{*message_ids} - hung])


def test_the_others_do_all_their_trainings_while_one_hangs(monkeypatch):
    """In real time: it is given up when the others have nothing left to do, and then tried again."""
    monkeypatch.setattr(conversation, "patience", lambda timeout: timeout)
    on(monkeypatch, Hung)
    ended = run_peers(FOUR, clock="arrival", round_timeout=0.5, max_round_retries=0)
    kinds = [(entry["kind"], entry.get("peer")) for entry in ended.ledger]
    before = kinds[: kinds.index(("left", 2))]
    assert [before.count(("submission", peer)) for peer in (0, 1, 3)] == [ROUNDS] * 3
    mine = [kind for kind, peer in kinds if peer == 2 and kind != "vote"]
    assert mine == ["joined", "left", "joined", "choice", "left"]


def test_a_voter_that_fails_leaves_and_joins_again_at_the_border_of_a_round(monkeypatch):
    on(monkeypatch, Failing, fails=staticmethod(lambda peer, action, count: (peer, action, count) == (3, "score", 1)))
    ended = run_peers(FOUR, validators=1, **SAME_SPEED)
    assert [entry["kind"] for entry in ended.ledger if entry.get("peer") == 3][:3] == ["joined", "left", "joined"]
    assert len(ended.of("left")) == 1
    assert {entry["submission"] for entry in ended.of("vote", 3)} >= {
        entry["weights"] for entry in ended.of("submission") if entry["number"] >= 2
    }


def test_a_training_that_fails_while_the_others_have_finished_is_repeated(monkeypatch):
    """Peer 1 fails once in its last training, when all trainings of the others have ended."""
    on(
        monkeypatch,
        Failing,
        fails=staticmethod(lambda peer, action, count: (peer, action, count) == (1, TRAIN, ROUNDS)),
    )
    ended = run_peers(**SAME_SPEED)
    assert [len(ended.of("submission", peer)) for peer in range(3)] == [ROUNDS] * 3
    assert len(ended.of("left", 1)) == 1


def test_a_run_ends_without_the_submissions_of_a_peer_that_always_fails(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("fedddpm"), "propagate", True)
    on(monkeypatch, Failing, fails=staticmethod(lambda peer, action, count: (peer, action) == (1, TRAIN) and count > 1))
    ended = run_peers(max_round_retries=1, **SAME_SPEED)
    assert [len(ended.of("submission", peer)) for peer in range(3)] == [ROUNDS, 1, ROUNDS]
    assert f"the run goes on without {ROUNDS - 1} submissions, of clients 1" in caplog.text


class Coming(Failing):
    """Node 2 connects when the others have been asked for a number of trainings."""

    after = 3

    def get_node_ids(self):
        asked = sum(count for (_, action), count in self._counts.items() if action == TRAIN)
        return [node for node in self.contexts if node != 1002 or asked >= self.after]


def test_a_peer_that_comes_late_votes_chooses_and_trains(monkeypatch):
    on(monkeypatch, Coming)
    ended = run_peers(rounds=4, min_available_nodes=2, **SAME_SPEED)
    mine = [entry["kind"] for entry in ended.ledger if entry.get("peer") == 2]
    assert mine[:5] == ["joined", "vote", "vote", "choice", "submission"]
    joined = ended.of("joined", 2)[0]["time"]
    assert joined > 0
    assert ended.of("submission", 2)[0]["time"] == joined + STEPS
    assert ended.of("submission", 2)[0]["parents"] == [ended.of("choice", 2)[0]["chosen"]]
    assert 2 in ended.models


class Outage(Failing):
    """All nodes are gone for a few looks at the list, from the moment when a number of trainings has failed."""

    away = 3

    def __init__(self, *args):
        super().__init__(*args)
        self.looks = {2: 0, 4: 0}

    @staticmethod
    def fails(partition, action, count):
        return action == TRAIN and count in (2, 4)

    def get_node_ids(self):
        counts = [count for (_, action), count in self._counts.items() if action == TRAIN]
        failed = counts[0] if len(counts) == 3 and len(set(counts)) == 1 and counts[0] in self.looks else 0
        if failed:
            self.looks[failed] += 1
        return [] if failed and self.looks[failed] <= self.away else [*self.contexts]


@pytest.mark.parametrize("retries", [0, 2])
def test_all_peers_away_at_once_do_not_end_the_run(monkeypatch, retries):
    """Twice in the run: what the peers submit in between counts."""
    on(monkeypatch, Outage)
    ended = run_peers(node_timeout=5.0, max_round_retries=retries, **SAME_SPEED)
    assert [len(ended.of("submission", peer)) for peer in range(3)] == [ROUNDS] * 3
    assert [len(ended.of("left", peer)) for peer in range(3)] == [2] * 3
    assert [len(ended.of("joined", peer)) for peer in range(3)] == [3] * 3


class Unlisted(Failing):
    """Node 2 is not listed for some time, but its message is answered."""

    def get_node_ids(self):
        asked = sum(count for (_, action), count in self._counts.items() if action == TRAIN)
        return [node for node in self.contexts if node != 1002 or not 3 <= asked < 6]


def test_a_training_that_is_under_way_is_awaited_though_its_node_is_not_listed(monkeypatch):
    on(monkeypatch, Unlisted)
    ended = run_peers(rounds=4, **SAME_SPEED)
    assert [len(ended.of("submission", peer)) for peer in range(3)] == [4] * 3
    assert not ended.of("left")


def test_a_run_whose_peers_all_fail_again_and_again_ends_with_the_reason(monkeypatch):
    on(monkeypatch, Failing, fails=staticmethod(lambda peer, action, count: action == TRAIN))
    with pytest.raises(RoundFailedError, match="all 3 clients that train have left; client 0: its node is gone"):
        run_peers(max_round_retries=1)


def broken(change):
    """``Points`` whose client 1 sends another submission."""

    def train(request):
        answer = train_point(request)
        return change(answer) if request.partition_id == 1 else answer

    action = ClientAction(train, Points.client_actions[TRAIN].metrics, records=Points.client_actions[TRAIN].records)
    return type("Broken", (Points,), {"client_actions": {TRAIN: action}})


def with_records(answer, **records):
    return ActionAnswer(answer.metrics, {**answer.records, **records})


BAD = {
    "shape": (lambda a: with_records(a, samples={"x": torch.zeros(4, dtype=torch.float64)}), "x is .* instead of"),
    "samples": (
        lambda a: with_records(a, samples={"x": torch.full((3,), torch.nan, dtype=torch.float64)}),
        "its weights are not finite",
    ),
    "weights": (
        lambda a: with_records(a, arrays={"x": torch.full((3,), torch.inf, dtype=torch.float64)}),
        "its weights are not finite",
    ),
    "examples": (lambda a: ActionAnswer({**a.metrics, "num-examples": 10**6}, a.records), "num-examples is 1000000"),
    "no steps": (lambda a: ActionAnswer({**a.metrics, "steps": -1.0}, a.records), "steps is -1, not a whole number"),
    "steps": (lambda a: ActionAnswer({**a.metrics, "steps": 1e9}, a.records), "steps is 1e\\+09, not a whole number"),
    "norm": (
        lambda a: with_records(a, arrays={"x": torch.full((3,), 1e9, dtype=torch.float64)}),
        'more than max-update-norm = "100"',
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_submission_is_refused_and_names_the_client(monkeypatch, caplog, name):
    monkeypatch.setattr(logging.getLogger("fedddpm"), "propagate", True)
    change, reason = BAD[name]
    ended = run_peers(algorithm=broken(change), max_update_norm="100")
    assert len(ended.of("submission", 0)) == len(ended.of("submission", 2)) == ROUNDS
    assert not ended.of("submission", 1)
    assert 1 not in ended.models
    assert re.search(reason, ended.of("left", 1)[0]["reason"])
    assert "client 1 has left, and the others go on without it" in caplog.text


# ---- dedup, config, real images --------------------------------------------------------------


@pytest.mark.parametrize("matched", [[], [7, 7, 7], [7, 7, 3]])
def test_dedup_leaves_images_out_of_the_training(config, matched):
    """Of 20 images, one is in the top 5 percent: the one that was matched most often."""
    (client,) = make_clients(20)
    seen = []

    class Data:
        device = torch.device("cpu")

        def __len__(self):
            return 20

        def batch(self, index):
            seen.append(index.tolist())
            return tuple(column[index] for column in client)

    class Task:
        def create_model(self):
            return Point()

        def train_data(self, partition):
            return Data()

        def local_steps(self, partition):
            return 10

        def loss_fn(self, model, batch, generator):
            return quadratic(model, batch)

    task = Task()
    request = ActionRequest(
        config, task, create_trainer(config, task), 0, 1, {"x": Point().x.detach()}, {NUMBER: 1, MATCHED: matched}
    )
    _, num_examples = train_peer(request)
    assert set(range(20)) - {index for batch in seen for index in batch} == ({7} if matched else set())
    assert num_examples == 20 - bool(matched)


def test_matches_reach_the_owner_only_with_dedup(monkeypatch):
    sent = []

    def train(request):
        sent.append((request.partition_id, request.values[NUMBER], [*request.values[MATCHED]]))
        return train_point(request)

    monkeypatch.setattr("tests.algorithms.peers.Score", lambda d, *_: Score(d, 1.0, 1, 1, [1]))
    action = ClientAction(train, Points.client_actions[TRAIN].metrics, records=Points.client_actions[TRAIN].records)
    kind = type("Seen", (Points,), {"client_actions": {TRAIN: action}})
    run_peers(CLIENTS[:2], algorithm=kind, rounds=2, dedup=True, **SAME_SPEED)
    assert sorted(sent) == [(0, 1, []), (0, 2, [1, 1]), (1, 1, []), (1, 2, [1, 1])]
    sent.clear()
    run_peers(CLIENTS[:2], algorithm=kind, rounds=2, **SAME_SPEED)
    assert sorted(sent) == [(0, 1, []), (0, 2, []), (1, 1, []), (1, 2, [])]


REFUSED = [
    ({"pdfed-validators": 4}, "pdfed-validators = 4 leaves no client to train, as num-clients = 4: use at most 3"),
    ({"held-out-fraction": 0.0}, "held-out-fraction = 0: .* use held-out-fraction = 0.1"),
    ({"pdfed-embedder": "inception-v3"}, 'pdfed-embedder = "inception-v3" needs inception-weights'),
    ({"auxiliary-sampler-steps": 51}, "auxiliary-sampler-steps = 51 is more than diffusion-steps = 50"),
    ({"pdfed-samples": 1}, "pdfed-samples = 1 cannot be used: it should be a whole number >= 2"),
    ({"pdfed-own-vote": 1.5}, "pdfed-own-vote = 1.5 cannot be used"),
    ({"pdfed-speed-spread": 0.5}, "pdfed-speed-spread = 0.5 cannot be used"),
    ({"pdfed-clock": "real"}, "pdfed-clock = 'real' cannot be used"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_values_that_cannot_be_used(run_config, overrides, message):
    with pytest.raises(ConfigError, match=message):
        get_algorithm(load_config(run_config | {"algorithm": "pdfed"} | overrides))


def test_keys_of_rounds_have_no_effect(run_config):
    given = {"clients-per-round": 2, "min-replies": 2, "server-ema-decay": 0.7, "wire-dtype": "int8-delta"}
    changed = run_config | {"algorithm": "pdfed"} | given
    config = load_config(changed)
    notes = start_notes(get_algorithm(config), config, changed)
    for key in given:
        assert any(note.startswith(f"{key} = ") and "has no effect" in note for note in notes)


def test_the_weights_of_its_embedder_have_an_effect(run_config):
    given = {"pdfed-embedder": "inception-v3", "inception-weights": "/weights", "eval-extractor": "pixels-pca"}
    changed = run_config | {"algorithm": "pdfed"} | given
    config = load_config(changed)
    assert not [note for note in start_notes(get_algorithm(config), config, changed) if "inception" in note]


def test_a_model_that_generates_no_images_is_refused():
    with pytest.raises(ConfigError, match="images that they hold out"):
        simulate("pdfed", Point(), quadratic, CLIENTS, 1, 1, 0.1)

    class Scored(PDFed):
        @classmethod
        def check_scores(cls, config):
            pass

    with pytest.raises(ConfigError, match="a Point is not a UNet2DModel, so it cannot generate any: override"):
        simulate(Scored, Point(), quadratic, CLIENTS, 1, 1, 0.1)


IMAGES = {"algorithm": "pdfed", "pdfed_samples": 24}


def test_a_run_on_images_has_a_ledger_scores_and_a_pipeline_per_peer(shared_run):
    run = shared_run(**IMAGES, pdfed_validators=1)
    ledger = [json.loads(line) for line in (run.path / "ledger.jsonl").read_text().splitlines()]
    assert sum(entry["kind"] == "submission" for entry in ledger) == 2 * 3
    assert {entry["peer"] for entry in ledger if entry["kind"] == "vote"} == {0, 1, 2, 3}
    row = run.rounds()[-1]
    assert sorted(row["pdfed/distance_of_peer"]) == ["0", "1", "2"]
    assert row["pdfed/distance"] == row["pdfed/distance_of_peer"][str(row["pdfed/best"])] > 0
    folders = [f"client-{k:04d}" for k in range(3)]
    assert sorted(path.name for path in (run.path / "pipeline").iterdir()) == folders
    assert sorted(row["eval/client_losses"]) == ["0", "1", "2"]


@pytest.mark.slow
def test_a_class_conditional_run_scores_class_by_class(shared_run):
    plain, classes = (shared_run(**IMAGES, class_conditional=value) for value in (False, True))
    assert classes.summary["status"] == "completed"
    assert classes.losses() != plain.losses()


@pytest.mark.slow
def test_weights_follow_the_wire_dtype_and_samples_do_not(shared_run, config):
    """Both ways 2 bytes fewer for each weight: 8 trainings, and nothing else."""
    full, half = (shared_run(**IMAGES, wire_dtype=value).summary for value in ("fp32", "bf16"))
    saved = 8 * num_bytes(create_unet(config.unet, config.data, 0).state_dict()) / 2 / 1e6
    assert full["comm/up_mb"] - half["comm/up_mb"] == pytest.approx(saved, rel=0.01)
    assert full["comm/down_mb"] - half["comm/down_mb"] == pytest.approx(saved, rel=0.01)


@pytest.mark.parametrize("dedup", [False, True])
def test_which_images_are_matched_leaves_the_client_only_with_dedup(run_config, dedup):
    config = load_config(run_config | {"algorithm": "pdfed", "pdfed-samples": 20, "pdfed-dedup": dedup})
    task = DiffusionTask(config)
    copies = to_uint8(task.train_data(0).batch(torch.arange(20)).images)
    request = ActionRequest(config, task, create_trainer(config, task), 0, 1, {"0/images": copies})
    answer = score(request)
    (found,) = unpack_scores(answer.records["scores"], answer.metrics["num-examples"])
    assert found.num_confirmed == 20
    assert found.matches == (list(range(20)) if dedup else [])


def test_a_grid_at_equal_steps_solves_for_the_rounds():
    """A peer takes 4 steps and 6 images of 2 forward passes in batches of 8: 4.5 steps; 96 steps are 21 of them."""
    row = {"pdfed-samples": 6, "auxiliary-sampler-steps": 2, "local-steps": 4}
    found = plan(rows={"fedavg": {}, "pdfed": row}).settings[2]
    assert found.solved == {"num-rounds": 5}
    assert found.cost.steps == pytest.approx(5 * 4 * 4.5)
    assert 20 < found.cost.models_up < 20.1
    assert 20 < found.cost.models_down < 20.3
