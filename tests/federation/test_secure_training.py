"""Rounds with masked updates: the same results as without, lost clients, refusals, and the bytes on the wire."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import client_app
import server_app
from fedddpm_app import FedDDPM, FederatedStrategy
from fedddpm_app.algorithms import get_algorithm
from fedddpm_app.config import ConfigError, load_config
from fedddpm_app.federation import strategy as strategy_module
from fedddpm_app.federation.clients import Clients
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.nodes.participants import Participants
from fedddpm_app.federation.rounds.training import RoundTraining
from fedddpm_app.federation.start_notes import start_notes
from fedddpm_app.inprocess.grid import InProcessGrid, run_inprocess
from fedddpm_app.inprocess.simulate import simulate
from fedddpm_app.secure.encoding import Encoding
from fedddpm_app.training.actions import ClientAction
from fedddpm_app.transport.carriers import pack_flat, read_record
from tests.algorithms.problems import CLIENTS, Point, quadratic, run
from tests.conftest import RunDirectory
from tests.faults.wrapper import FAULTS, FaultyClientApp
from tests.secure.parties import lying

SECURE = {"secure_aggregation": True}
QUICK = {"algorithm": "fedavg", "eval-every": 0, "preview-every": 0, "num-rounds": 1, "max-update-norm": ""}
STEP = 4.0 / 2**31


@pytest.mark.parametrize("algorithm", ["fedavg", "fedddpm"])
def test_two_rounds_end_where_the_plain_ones_do_within_the_rounding(algorithm):
    """Gradient steps on convex problems do not enlarge a difference: that of both rounds is at most 2 * 3 steps."""
    more = {"auxiliary_data": CLIENTS[0], "correction_steps": 2} if algorithm == "fedddpm" else {}
    plain, masked = (run(algorithm, rounds=2, **more, **given) for given in ({}, SECURE))
    off = abs(plain - masked).max()
    assert 0 < off <= 2 * 3 * STEP * 1.001


@pytest.mark.parametrize(
    ("algorithm", "more"),
    [
        ("fedprox", {"mu": 1.0}),
        ("moon", {}),
        ("fedavg", {"aggregator": "fedavgm"}),
        ("fedavg", {"transport": "arrays"}),
    ],
)
def test_what_needs_the_mean_alone_works_as_without_masks(algorithm, more):
    plain, masked = (run(algorithm, **more, **given) for given in ({}, SECURE))
    assert abs(plain - masked).max() < 1e-7


def test_losses_ride_under_the_masks_and_their_mean_is_that_of_the_plain_run():
    rows = [simulate("fedavg", Point(), quadratic, CLIENTS, 1, 3, 0.05, **given)[1][0] for given in ({}, SECURE)]
    plain, masked = rows
    for key in ("train/loss", "train/final_loss"):
        assert masked[key] == pytest.approx(plain[key], abs=1e-9)
    assert plain["train/num_examples"] == masked["train/num_examples"] == 10
    assert plain["compute/steps"] == masked["compute/steps"]
    assert "train/client_loss" not in masked
    assert masked["secure/rounding_bound"] == pytest.approx(3 * STEP)
    assert masked["secure/clipped_share"] == 0.0


def test_updates_are_clipped_on_the_clients_and_the_share_is_reported(caplog):
    weights, history = simulate("fedavg", Point(), quadratic, CLIENTS, 1, 3, 0.05, secure_clip=1e-3, **SECURE)
    assert history[0]["secure/clipped_share"] == pytest.approx(1.0)
    assert (weights["x"] - Point().x.detach()).abs().max() == pytest.approx(1e-3, rel=1e-6)
    assert "100 % of the values of the updates were clipped to secure-clip = 0.001" in caplog.text


def test_a_client_that_diverges_declines_before_anything_is_masked():
    with pytest.raises(RoundFailedError, match="its training diverged"):
        simulate("fedavg", Point(), quadratic, CLIENTS, 1, 3, 1e300, max_round_retries=0, **SECURE)


class Spy:
    """What comes back from clients: (message type, {record: tensors}), and the bytes both ways, in a run."""

    def __init__(self, monkeypatch):
        self.replies, self.up, self.down, answer = [], 0, 0, InProcessGrid._answer

        def noted(grid, message):
            given = message.content.config_records.get("secure", {})
            shares = [*given.get("sealed", []), *given.get("promised", [])]
            self.down += sum(map(len, shares)) + size_of(message.content)
            reply = answer(grid, message)
            if reply.has_content():
                self.up += size_of(reply.content)
                records = {name: copied(record) for name, record in reply.content.array_records.items()}
                self.replies.append((message.metadata.message_type, records))
            return reply

        monkeypatch.setattr(InProcessGrid, "_answer", noted)

    def uploads(self):
        return [records for kind, records in self.replies if kind == "train"]


def copied(record):
    """The server takes over the memory of a record when it reads it."""
    return {name: tensor.clone() for name, tensor in read_record(record).items()}


def size_of(content):
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def test_every_message_has_masked_numbers_alone_and_all_bytes_are_counted(monkeypatch):
    spy = Spy(monkeypatch)
    _, history = simulate("fedavg", Point(), quadratic, CLIENTS, 2, 3, 1e-30, **SECURE)  # no client moves
    kinds = [kind for kind, _ in spy.replies if kind.startswith("train")]
    steps = ["train.secure_keys", "train.secure_shares", "train", "train.secure_reveal"]
    assert kinds == [step for step in steps * 2 for _ in CLIENTS]
    assert all(set(records) == {"masked"} for records in spy.uploads())
    narrow = [records["masked"]["narrow"] for records in spy.uploads()]
    assert len(narrow) == 6
    assert all(numbers.abs().min() > 2 for numbers in narrow)  # plain ones are 0 or, rounded up, 1
    assert len({tuple(numbers.tolist()) for numbers in narrow}) == 6
    assert sum(row["comm/up_mb"] for row in history) * 1e6 == pytest.approx(spy.up)
    assert sum(row["comm/down_mb"] for row in history) * 1e6 == pytest.approx(spy.down)


@pytest.fixture
def run_with(run_config):
    """Run the tiny app in this process with planted faults, each of which ends after ``times``."""

    def of(faults="", name="run", times=10**9, secure=True, **more):
        given = QUICK | {"secure-aggregation": secure} | {key.replace("_", "-"): value for key, value in more.items()}
        resolved = run_config | {"run-name": name} | given
        run_inprocess(server_app.app, Passing(client_app.app, faults, times), resolved, 4)
        return RunDirectory(Path(resolved["output-dir"]) / name)

    return of


class Passing(FaultyClientApp):
    def __init__(self, app, faults, times):
        super().__init__(app, faults)
        self._times = times

    def __call__(self, message, context):
        fault = self._chosen(message, context)
        if fault is None or sum(self.seen.values()) > self._times:
            return self._app(message, context)
        return FAULTS[fault](self._app, message, context)


def model_of(run):
    return load_file(max((run.path / "checkpoints").glob("round-*")) / "model.safetensors")


def largest_difference(one, other):
    other = model_of(other)
    return max((tensor - other[name]).abs().max() for name, tensor in model_of(one).items())


@pytest.mark.parametrize("step", ["keys", "shares", "train", "reveal"])
def test_a_client_is_lost_at_each_step(run_with, step):
    """The mean of the others comes out; a client that is lost after its upload is in the sum."""
    masked = run_with(f"{step}:1:*:raise")
    plain = run_with("" if step == "reveal" else "train:1:*:raise", "plain", secure=False)
    (row,), (expected,) = masked.rounds(), plain.rounds()
    assert largest_difference(masked, plain) < 1e-6
    assert row["train/num_examples"] == expected["train/num_examples"]
    assert row["train/loss"] == pytest.approx(expected["train/loss"], abs=1e-9)
    left_out = {} if step == "reveal" else {"1": "RuntimeError: a planted fault"}
    assert row.get("train/left_out", {}) == left_out
    assert row.get("secure/recovered") == ([1] if step == "train" else None)


@pytest.mark.parametrize(("step", "did"), [("train", "returned a masked update"), ("reveal", "2 clients revealed")])
def test_too_few_clients_repeat_the_round_with_new_keys(run_with, monkeypatch, step, did):
    """0.66 of 4 clients are 3, and two are lost, once."""
    spy = Spy(monkeypatch)
    run = run_with(f"{step}:0:1:raise {step}:1:1:raise", times=2, max_round_retries=1)
    (abandoned,) = (row for row in run.stats if row["phase"] == "abandoned")
    assert did in abandoned["reason"]
    public = [tuple(records["keys"]["mask"].flatten().tolist()) for _, records in spy.replies if "keys" in records]
    whole = run_with(name="whole")
    assert {name: t.tolist() for name, t in model_of(run).items()} == {
        name: t.tolist() for name, t in model_of(whole).items()
    }
    assert len(public) == len(set(public)) == 2 * 4


def test_min_replies_counts_too(run_with):
    """3 of 4 clients are enough to unmask, but not for min-replies = 4."""
    with pytest.raises(RoundFailedError, match="3 of the 4 clients sent keys, fewer than the 4 of min-replies = 4"):
        run_with("keys:2:1:raise", min_replies=4)


def test_a_node_that_was_restarted_in_between_counts_as_lost(run_with, monkeypatch):
    def forgets(app, message, context):
        context.state.clear()
        return app(message, context)

    monkeypatch.setitem(FAULTS, "restart", forgets)
    (row,) = run_with("train:3:1:restart").rounds()
    assert row["train/left_out"]["3"].startswith("it does not know this session: it was restarted")
    assert row["secure/recovered"] == [3]


def test_a_client_answers_no_request_for_an_update_without_a_mask(run_with, monkeypatch):
    monkeypatch.setattr(strategy_module, "SecureTraining", RoundTraining)
    with pytest.raises(RoundFailedError, match="the server asks for an update without a mask"):
        run_with()


class OwnMean(FederatedStrategy):
    def aggregate(self, server_round, replies):
        return super().aggregate(server_round, replies)


class OwnCorrection(FedDDPM):
    def after_aggregation(self, server_round, weights):
        return weights


class OwnModels(FederatedStrategy):
    """Its action names no steps, but returns weights."""

    client_actions = {"own": ClientAction(lambda request: None, records=("arrays",))}  # noqa: RUF012


class OwnTrainings(FederatedStrategy):
    """Its action trains, and returns other tensors."""

    client_actions = {"own": ClientAction(lambda request: None, ("steps",), records=("more",))}  # noqa: RUF012


OWN_STEP = ("scaffold", "feddyn", "fednova", "pdfed", "local-only", "feddiffuse", "fedphd", "mixture", "kd-only")
REFUSED = {
    **dict.fromkeys(OWN_STEP, "leaves the algorithm the mean of a round alone, but algorithm"),
    f"{__name__}:OwnMean": "overrides aggregate, which reads or chooses .* do its work in after_aggregation",
    "fedddpm-late": 'asks its clients for fine_tune, anneal, .* no mask hides: use "fedavg" or "fedddpm"',
    **dict.fromkeys((f"{__name__}:OwnModels", f"{__name__}:OwnTrainings"), "asks its clients for own, .* no mask"),
}


@pytest.mark.parametrize("algorithm", REFUSED)
def test_algorithms_that_read_single_replies_are_refused_by_name(run_config, algorithm):
    given = run_config | {"algorithm": algorithm, "secure-aggregation": True, "max-update-norm": ""}
    with pytest.raises(ConfigError, match=REFUSED[algorithm]) as refused:
        get_algorithm(load_config(given))
    assert f'algorithm = "{algorithm}"' in str(refused.value)
    get_algorithm(load_config(given | {"secure-aggregation": False}))


def test_a_fine_tuning_that_nothing_is_distilled_from_is_refused_too(run_config):
    """With correction-steps = 0 it is an annealed last round of FedAvg, whose models go to the server as they are."""
    given = {"algorithm": "fedddpm-late", "correction-steps": 0, "secure-aggregation": True, "max-update-norm": ""}
    with pytest.raises(ConfigError, match="asks its clients for fine_tune, anneal"):
        get_algorithm(load_config(run_config | given))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"aggregator": "fedmedian"}, 'aggregator = "fedmedian" compares'),
        ({"aggregator": "krum"}, 'aggregator = "krum" compares'),
        ({"max-update-norm": "100x"}, 'max-update-norm = "100x" cannot be used with secure-aggregation'),
        ({"wire-dtype": "int8-delta"}, 'wire-dtype = "int8-delta" cannot be used with secure-aggregation'),
        ({"clients-per-round": 1}, "a sum of one update is that update"),
        ({"secure-threshold": 0.5}, "above 0.5"),
    ],
)
def test_settings_that_cannot_hold_are_refused(run_config, given, reason):
    base = run_config | {"algorithm": "fedavg", "secure-aggregation": True, "max-update-norm": ""}
    with pytest.raises(ConfigError, match=reason):
        get_algorithm(load_config(base | given))
    get_algorithm(load_config(base))


def test_records_besides_the_weights_are_refused_where_they_become_known():
    class Sends(FederatedStrategy):
        def prepare(self, grid, weights):
            self.reply_references["more"] = {"m": torch.zeros(2)}
            return weights

    with pytest.raises(ConfigError, match="has clients send more besides their weights"):
        simulate(Sends, Point(), quadratic, CLIENTS, 1, 1, 0.1, **SECURE)


def test_own_methods_after_the_aggregation_are_accepted(run_config):
    given = {"algorithm": f"{__name__}:OwnCorrection", "secure-aggregation": True, "max-update-norm": ""}
    assert get_algorithm(load_config(run_config | given)) is OwnCorrection


@pytest.mark.parametrize(
    ("given", "noted"),
    [
        ({}, True),
        ({"auxiliary-sharing": "images"}, False),
        ({"correction-steps": 0}, False),
        ({"algorithm": "fedavg"}, False),
    ],
)
def test_models_that_leave_before_the_rounds_are_noted(run_config, given, noted):
    changed = run_config | {"secure-aggregation": True, "max-update-norm": ""} | given
    config = load_config(changed)
    notes = start_notes(get_algorithm(config), config, changed)
    assert any("every client also sends its own pretrained model" in note for note in notes) is noted


@pytest.mark.parametrize(("count", "needed"), [(2, 2), (3, 2), (4, 3), (10, 7), (100, 66)])
def test_the_threshold_is_a_share_of_the_clients(run_config, count, needed):
    assert load_config(run_config).secure.needed(count) == needed


@pytest.mark.parametrize(
    ("step", "record", "tensor", "reason"),
    [
        ("keys", "keys", "mask", "a public key is not a point of the curve"),
        ("keys", "keys", "seal", "a public key is not a point of the curve"),
        ("shares", "shares", "digest", "the shares of client 1 do not give the seed that it promised"),
        ("shares", "shares", "sealed", "the shares of client 1 were not as promised, or changed, for 3 clients"),
        ("shares", "shares", "promises", "the shares of client 1 were not as promised, or changed, for 3 clients"),
    ],
)
def test_one_client_that_breaks_the_protocol_costs_its_own_reply_and_not_the_run(
    run_app, monkeypatch, step, record, tensor, reason
):
    original = InProcessGrid._answer

    def answer(self, message):
        reply = original(self, message)
        if message.metadata.message_type == f"train.secure_{step}" and message.metadata.dst_node_id == 1001:
            sent = read_record(reply.content.array_records[record])
            sent = sent | {tensor: torch.full_like(sent[tensor], 65)}
            reply.content[record] = pack_flat(sent).record
        return reply

    monkeypatch.setattr(InProcessGrid, "_answer", answer)
    quick = {key.replace("-", "_"): value for key, value in QUICK.items()}
    run = run_app(**quick, **SECURE, max_round_retries=1)
    rows = [row for row in run.stats if row["phase"] in ("round", "abandoned")]
    assert [row["phase"] for row in rows] == (["round"] if step == "keys" else ["abandoned", "round"])
    assert rows[-1].get("declined") == (None if step == "keys" else [1])
    assert any(reason in row.get("train/left_out", {}).get("1", "") for row in rows)


@pytest.mark.parametrize(
    ("lie", "faults", "reason"),
    [
        ("a long seed", "", "do not give the seed that it promised"),
        ("no padding", "", "do not belong together"),
        ("one index", "", "do not belong together"),
        ("no padding", "train:1:*:raise", "do not belong together"),  # of its key
        ("one index", "train:1:*:raise", "do not belong together"),
    ],
)
def test_one_client_whose_shares_give_no_secret_is_left_out_and_the_run_goes_on(
    run_with, monkeypatch, lie, faults, reason
):
    """It keeps its promises, so that nobody notices anything before the masks are to be removed."""
    original = InProcessGrid._answer

    def answer(self, message):
        if message.metadata.message_type != "train.secure_shares" or message.metadata.dst_node_id != 1001:
            return original(self, message)
        with lying(lie, self.contexts[1001].state["fedddpm-secure"]):
            return original(self, message)

    monkeypatch.setattr(InProcessGrid, "_answer", answer)
    run = run_with(faults, max_round_retries=1)
    abandoned, repeated = (row for row in run.stats if row["phase"] in ("round", "abandoned"))
    assert abandoned["train/left_out"]["1"] == f"the shares of client 1 {reason}"
    assert (repeated["phase"], repeated["declined"]) == ("round", [1])


def test_clients_that_are_found_out_one_after_the_other_do_not_use_up_the_retries(run_with, monkeypatch):
    """Two of 4 lie in an attempt each, where only the last message of the protocol shows it."""
    original, attempts = InProcessGrid._answer, Counter()

    def answer(self, message):
        kind, node = message.metadata.message_type, message.metadata.dst_node_id
        attempts[self] += (kind, node) == ("train.secure_keys", 1000)
        if (kind, node) != ("train.secure_shares", 1000 + attempts[self]) or attempts[self] > 2:
            return original(self, message)
        with lying("no padding", self.contexts[node].state["fedddpm-secure"]):
            return original(self, message)

    monkeypatch.setattr(InProcessGrid, "_answer", answer)
    with pytest.raises(RoundFailedError, match="do not belong together"):
        run_with("", max_round_retries=0)  # then no round is ever repeated
    run = run_with("", name="other", max_round_retries=1)
    rows = [row for row in run.stats if row["phase"] in ("round", "abandoned")]
    assert [row["phase"] for row in rows] == ["abandoned", "abandoned", "round"]
    assert rows[-1]["declined"] == [1, 2]


def test_a_client_that_is_found_out_again_and_again_does_not_repeat_a_round_for_ever(run_with, monkeypatch):
    """It comes back under another node id, so that nobody knows that it was excluded."""
    original, keys_asked = InProcessGrid._answer, []

    def answer(self, message):
        kind, node = message.metadata.message_type, message.metadata.dst_node_id
        keys_asked.extend([node] * (kind == "train.secure_keys"))
        if (kind, node) != ("train.secure_shares", 1001):
            return original(self, message)
        with lying("no padding", self.contexts[node].state["fedddpm-secure"]):
            return original(self, message)

    present = Clients.present

    def forgets(self, *arguments):
        self.declined.clear()
        return present(self, *arguments)

    monkeypatch.setattr(InProcessGrid, "_answer", answer)
    monkeypatch.setattr(Clients, "present", forgets)
    with pytest.raises(RoundFailedError, match="do not belong together"):
        run_with(max_round_retries=1)
    assert keys_asked.count(1001) == 4 + 1 + 1  # once for each client, and once for the retry


def test_masks_that_do_not_cancel_are_found_out(run_with, monkeypatch):
    """A host with another version of the app has other settings in its masks."""
    original, told = InProcessGrid._answer, Encoding.told

    def answer(self, message):
        other = message.metadata.message_type == "train" and message.metadata.dst_node_id == 1001
        with monkeypatch.context() as patch:
            if other:
                patch.setattr(Encoding, "told", lambda *given: told(*given) + b"more")
            return original(self, message)

    monkeypatch.setattr(InProcessGrid, "_answer", answer)
    with pytest.raises(RoundFailedError, match="the masks of the sum do not cancel: do all hosts run the same"):
        run_with()


def test_a_node_that_held_another_partition_before_is_the_client_that_it_is_now(run_with, monkeypatch):
    update = Participants.update

    def with_a_former_node(self, *arguments):
        update(self, *arguments)
        self.node_of[3] = self.node_of[2]

    monkeypatch.setattr(Participants, "update", with_a_former_node)
    monkeypatch.setattr(InProcessGrid, "get_node_ids", lambda self: [1000, 1001, 1002])
    (row,) = run_with(min_available_nodes=3, node_timeout=0.1).rounds()
    assert row["clients"] == [0, 1, 2]
    assert "train/left_out" not in row


def test_one_accuser_alone_is_not_believed(run_with, monkeypatch):
    """Client 1 makes bad shares for client 2 alone, which is then lost in each round: either of them may lie."""
    original = InProcessGrid._answer

    def answer(self, message):
        reply = original(self, message)
        if message.metadata.message_type == "train.secure_shares" and message.metadata.dst_node_id == 1001:
            sent = copied(reply.content.array_records["shares"])
            sent["sealed"][1] = 65  # of the peers 0, 2 and 3
            reply.content["shares"] = pack_flat(sent).record
        return reply

    monkeypatch.setattr(InProcessGrid, "_answer", answer)
    rows = run_with(num_rounds=2).rounds()
    assert [row["train/left_out"] for row in rows] == [{"2": "the shares of client 1 were changed on their way"}] * 2
    assert not any("declined" in row for row in rows)
