"""What honest clients answer to a server that asks for more than the run: other rounds, runs, weights and sums."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, RecordDict

from fedddpm_app.config import load_config
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.inprocess.grid import InProcessGrid
from fedddpm_app.secure.client import ClientSession
from fedddpm_app.secure.server import ServerSession
from fedddpm_app.training.actions import ActionAnswer, ClientAction
from fedddpm_app.transport.carriers import pack_flat, read_record

SECURE = {"algorithm": "fedavg", "num_rounds": 1, "secure_aggregation": True, "max_update_norm": "", "eval_every": 0}
UDEC = {"algorithm": "feddiffuse", "feddiffuse_split": "udec", "feddiffuse_collect_models": False, "eval_every": 0}


@pytest.fixture
def server(monkeypatch):
    """Have ``change(ask, message, client)`` answer a client's messages of a type; ``ask`` asks the honest client."""

    def set_up(message_type, change):
        original = InProcessGrid._answer

        def answer(self, message):
            if message.metadata.message_type != message_type:
                return original(self, message)
            return change(lambda each: original(self, each), message, message.metadata.dst_node_id - 1000, self)

        monkeypatch.setattr(InProcessGrid, "_answer", answer)

    return set_up


def changed(message, **records):
    """The same message with other records: messages share theirs, and each has its own content."""
    other = copy.copy(message)
    other.content = RecordDict({**message.content, **records})
    return other


def config_of(message, record, **values):
    return {record: ConfigRecord({**message.content[record], **{k.replace("_", "-"): v for k, v in values.items()}})}


def test_a_part_that_stays_at_a_client_stays_there_whatever_the_server_asks_for(run_app, server):
    """Encoder and bottleneck of ``udec``: the server asks for them by name, or for all weights."""
    left = {}

    def change(ask, message, client, grid):
        server_round = message.content["config"]["server-round"]
        if client == 1:
            names = [*message.content["exchange"]["returned"], "conv_in.weight"]
            message = changed(message, **config_of(message, "exchange", returned=names))
        elif client == 2:
            message = changed(message)
            del message.content["exchange"]
        reply = ask(message)
        if reply.has_content():
            left[client, server_round] = {*read_record(reply.content.array_records["arrays"])}
        return reply

    server("train", change)
    run_app(num_rounds=1, **UDEC)
    assert {client for client, _ in left} >= {0, 3}
    assert not [key for key, names in left.items() if "conv_in.weight" in names]


@pytest.mark.slow
def test_a_server_that_names_other_runs_gets_no_more_private_steps(run_app, server):
    """The budget of one round is spent after it, in whichever run's name the next one is asked for."""
    trained = []

    def change(ask, message, client, grid):
        first = ask(message)
        for run in "123":
            again = ask(changed(message, **config_of(message, "config", state_run=run)))
            trained.append(again.has_content())
        return first

    server("train", change)
    (row,) = run_app(algorithm="fedavg", num_rounds=1, train_dp_epsilon=4.0).rounds()
    assert len(row["train/dp_epsilon"]) == 4
    assert not any(trained)


def test_a_client_makes_no_more_images_than_the_auxiliary_set_has(run_app, server):
    made = []

    def change(ask, message, client, grid):
        reply = ask(changed(message, **config_of(message, "values", count=13)) if client == 1 else message)
        if reply.has_content():
            made.append(len(read_record(reply.content.array_records["images"])["images"]))
        return reply

    server("train.share_images", change)
    run_app(num_rounds=1, auxiliary_sharing="images", memorization_check="never")
    assert len(made) == 3
    assert max(made) < 13


def test_a_client_that_shares_images_sends_no_model_even_if_it_is_asked(run_app, server):
    sent = []

    def change(ask, message, client, grid):
        about = message.metadata.__dict__
        about["_message_type"] = "train.pretrain"
        sent.append("arrays" in reply.content if (reply := ask(message)).has_content() else False)
        about["_message_type"] = "train.share_images"
        return ask(message)

    server("train.share_images", change)
    run = run_app(num_rounds=1, auxiliary_sharing="images", memorization_check="never")
    assert sent == [False] * 4
    assert run.phases()[0] == "pretrain"


@pytest.mark.parametrize("earlier", ["state", "message"])
def test_a_client_reveals_one_of_two_secrets_even_if_its_state_is_that_of_before(run_app, server, earlier):
    """Flower gives two messages that arrive together the same state, and a slow one brings it back when it ends."""
    revealed = []

    def change(ask, message, client, grid):
        context = grid.contexts[1000 + client]
        before = copy.deepcopy(context.state)
        first = ask(message)
        if client == 2:
            return first
        context.state = before
        name = read_record(message.content.array_records["arrays"])["session"]
        answered = [0, 1, 3] if earlier == "state" else [0, 1, 2, 3]
        lists = {
            "answered": torch.tensor(answered),
            "dropped": torch.tensor([2][: 4 - len(answered)], dtype=torch.int64),
        }
        arrays = pack_flat({"session": name, **lists}).record
        revealed.append(ask(changed(message, arrays=arrays)).has_content())
        return first

    server("train.secure_reveal", change)
    run_app(**SECURE)
    assert len(revealed) == 3
    assert not any(revealed) if earlier == "state" else all(revealed)


@pytest.mark.parametrize("lie", ["none", "total", "weights", "settings"])
def test_a_sum_of_clients_that_were_told_different_things_says_nothing(run_app, server, monkeypatch, lie):
    """Others that learn nothing, or whose images are few beside a huge total, send zeros: the sum is one's update."""
    plain, sums = {}, []
    mask, unmask = ClientSession.mask, ServerSession.unmask

    def noted(self, session, vector, *given):
        plain[self._me] = vector.narrow.copy()
        return mask(self, session, vector, *given)

    def kept(self, revealed, *given):
        sums.append(unmask(self, revealed, *given))
        return sums[-1]

    def change(ask, message, client, grid):
        if client == 1 or lie == "none":
            return ask(message)
        if lie == "total":
            return ask(changed(message, **config_of(message, "secure", total=2**62)))
        if lie == "settings":
            grid.contexts[1000 + client].run_config["learning-rate"] = 1e-30
            return ask(message)
        zeros = {name: torch.zeros_like(each) for name, each in read_record(message.content["arrays"]).items()}
        return ask(changed(message, arrays=pack_flat(zeros).record))

    monkeypatch.setattr(ClientSession, "mask", noted)
    monkeypatch.setattr(ServerSession, "unmask", kept)
    server("train", change)
    with nullcontext() if lie == "none" else pytest.raises(RoundFailedError, match="masks of the sum do not cancel"):
        run_app(**SECURE, max_round_retries=0)  # a server that lies may as well leave out this check
    (total,) = sums
    exact = sum(each.astype(np.uint32) for each in plain.values())
    assert (total.narrow == exact).all() == (lie == "none")
    if lie == "total":
        others = (total.narrow - plain[1]).astype(np.int32)
        assert abs(others.astype(np.int64)).max() > 2**20


def test_clients_that_were_told_to_hold_images_back_are_known_by_their_masks(run_config):
    """With one image each, they would send almost nothing: their settings of the data are among what was told."""
    known = load_config(run_config).about_training
    for key, value in {"held-out-fraction": 0.9999, "partition": "iid", "seed": 5}.items():
        assert load_config(run_config | {key: value}).about_training != known, key
    assert load_config(run_config | {"cache-dir": "/of/this/host"}).about_training == known


def test_a_client_of_a_masked_run_sends_no_update_without_a_mask(run_app, server):
    """Whatever its message or its run config says in a later step."""
    plain = []

    def change(ask, message, client, grid):
        if client == 1:
            context = grid.contexts[1001]
            context.run_config["secure-aggregation"] = False
            plain.append(ask(message))
            context.run_config["secure-aggregation"] = True
        return ask(message)

    server("train", change)
    (row,) = run_app(**SECURE).rounds()
    assert "the server asks for weights without a mask, in a run with secure-aggregation" in plain[0].error.reason
    assert "train/left_out" not in row


@pytest.mark.parametrize(
    ("action", "settings", "reason"),
    [
        ("pretrain", {"correction_steps": 0}, "which this run does not need"),
        ("pretrain", {}, "which starts from other weights"),
        ("share_images", {"auxiliary_sharing": "images", "memorization_check": "never"}, "starts from other weights"),
    ],
)
def test_a_client_of_a_masked_run_sends_no_other_model_of_its_own(run_app, server, action, settings, reason):
    """In a round, the server asks for one that starts at the global weights, and would show what masks hide."""
    plain = []

    def change(ask, message, client, grid):
        about = message.metadata.__dict__
        about["_message_type"] = f"train.{action}"
        moved = {name: each + 1 for name, each in read_record(message.content["arrays"]).items()}
        values = ConfigRecord({"count": 1})
        plain.append(ask(changed(message, values=values, arrays=pack_flat(moved).record)))
        about["_message_type"] = "train"
        return ask(message)

    server("train", change)
    (row,) = run_app(**SECURE | {"algorithm": "fedddpm"} | settings).rounds()
    assert len(plain) == 4
    assert all(reason in reply.error.reason for reply in plain)
    assert "train/left_out" not in row


class Unchecked(FederatedStrategy):
    """Its start refuses nothing; the clients do."""

    client_actions = {"fit": ClientAction(lambda request: ActionAnswer(), records=("arrays",))}  # noqa: RUF012

    @classmethod
    def check_config(cls, config):
        pass


@pytest.mark.parametrize(
    ("algorithm", "named", "action", "reason"),
    [
        ("fedavg", "fedddpm-late", "fine_tune", "asks its clients for fine_tune, anneal"),
        (f"{__name__}:Unchecked", f"{__name__}:Unchecked", "fit", 'the server asks for "fit", whose answer no mask'),
    ],
)
def test_a_client_of_a_masked_run_does_no_other_training_without_a_mask(
    run_app, server, algorithm, named, action, reason
):
    """Nor by an action of the run's own algorithm, nor of another one that the server names in its place."""
    plain = []

    def change(ask, message, client, grid):
        about, run_config = message.metadata.__dict__, grid.contexts[1000 + client].run_config
        about["_message_type"], run_config["algorithm"] = f"train.{action}", named
        plain.append(ask(message))
        about["_message_type"], run_config["algorithm"] = "train", algorithm
        return ask(message)

    server("train", change)
    (row,) = run_app(**SECURE | {"algorithm": algorithm}).rounds()
    assert len(plain) == 4
    assert all(reason in reply.error.reason for reply in plain)
    assert "train/left_out" not in row
