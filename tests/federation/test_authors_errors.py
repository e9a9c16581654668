"""What an author's code gives the app: what a line can hold, and sentences for what cannot be used."""

import json

import numpy as np
import pytest
import torch

from fedddpm_app.algorithms import REGISTRY
from fedddpm_app.client.checks import _warn_of_dropped
from fedddpm_app.federation.accounting import Accounting
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.rounds.round_log import RoundLog
from fedddpm_app.inprocess.simulate import simulate
from fedddpm_app.training.actions import ActionAnswer, ClientAction
from fedddpm_app.training.hooks import TrainingHook
from tests.algorithms.problems import CLIENTS, Point, quadratic, run

FedAvg = REGISTRY["fedavg"]
RECORD = {"value": torch.ones(2)}


def test_a_line_holds_numbers_of_any_library():
    log = RoundLog(Accounting(1.0))
    log.begin(3, [0], [])
    values = {"torch": torch.tensor(0.5), "numpy": np.float32(0.5), "one": np.ones((1, 1)), "whole": np.int64(3)}
    by_client = {3: 0.25, np.int64(4): 0.5, 0.5: 1.0}
    log.add({"my/values": values, "my/list": (torch.tensor(1), None, True), "my/by_client": by_client})
    log.add({"time/solve_s": 2.0, "my/array": torch.ones(2, 1), "my/none": np.zeros(0)})
    line = json.loads(json.dumps(log.close()))
    assert line["my/values"] == {"torch": 0.5, "numpy": 0.5, "one": 1.0, "whole": 3}
    assert line["my/list"] == [1, None, True]
    assert line["my/by_client"] == {"3": 0.25, "4": 0.5, "0.5": 1.0}  # as JSON names them
    assert (line["time/solve_s"], line["my/array"], line["my/none"]) == (2.0, [[1.0], [1.0]], [])


@pytest.mark.parametrize(
    ("stats", "error", "says"),
    [
        ({"weights": torch.ones(20_000)}, TypeError, r"weights is a Tensor of shape \(20000,\): record numbers"),
        ({"my/hook": [object()]}, TypeError, "my/hook is a object: record numbers"),
        ({"my/pairs": {(0, 1): 1.0}}, TypeError, r"my/pairs has the name \(0, 1\) in a mapping: use texts"),
        ({"round": 7}, ValueError, '"round" is a name that the app writes .* such as "my/round"'),
        ({"time/round_s": 1.0}, ValueError, '"time/round_s" is a name that .* as "my/round_s"'),
    ],
)
def test_what_a_line_cannot_hold_is_refused_where_it_is_recorded(stats, error, says):
    class Mine(FedAvg):
        def after_aggregation(self, server_round, weights):
            self.record(**stats)
            return weights

    with pytest.raises(error, match=f"record: {says}"):
        run(Mine)


def test_values_before_round_1_are_in_the_line_before_it(monkeypatch):
    lines = []

    class Mine(FedAvg):
        def prepare(self, grid, weights):
            self.record(**{"my/images": torch.tensor(12)})
            monkeypatch.setattr(self.recorder, "append", lines.append)
            return weights

    simulate(Mine, Point(), quadratic, CLIENTS, 1, 1, 0.1)
    assert lines[0] == {"phase": "initial", "round": 0, "my/images": 12}
    assert "my/images" not in lines[1]


def mine(**attributes):
    """A strategy whose hook does ``on_end`` and has ``keeps_state``, and which expects the records ``expected``."""

    class Hook(TrainingHook):
        keeps_state = attributes.get("keeps_state", False)

        def on_end(self, result, full_gradient):
            attributes["on_end"](self)

    class Mine(FedAvg):
        hook = Hook

    return Mine


@pytest.mark.parametrize(
    ("keeps", "on_end", "says"),
    [
        (True, lambda hook: hook.kept.update(drift=torch.ones(2)), 'self.kept of the hook: "drift" is a Tensor: give'),
        (True, lambda hook: hook.kept.update(drift={"v": 1.0}), 'self.kept of the hook: "drift" is a dict: give'),
        (True, lambda hook: hook.kept.update(drift={"v": torch.tensor(torch.nan)}), '"drift", in self.kept .* finite'),
        (False, lambda hook: hook.sent.update(drift=[1.0]), 'self.sent of the hook: "drift" is a list: give a dict'),
    ],
)
def test_a_hooks_records_that_cannot_be_used_are_named(keeps, on_end, says):
    with pytest.raises(RoundFailedError, match=says):
        run(mine(keeps_state=keeps, on_end=on_end))


@pytest.mark.parametrize("wire_dtype", ["fp32", "int8-delta"])
def test_what_a_hook_without_a_state_keeps_is_dropped_with_a_warning(caplog, wire_dtype):
    _warn_of_dropped.cache_clear()
    seen = []

    def on_end(hook):
        seen.append([*hook.round.state])
        hook.kept["drift"] = RECORD

    kind = mine(keeps_state=False, on_end=on_end)
    simulate(kind, Point(), quadratic, CLIENTS, 2, 1, 0.1, dtype=torch.float32, wire_dtype=wire_dtype)
    assert not any("drift" in names for names in seen)
    warning = 'Hook: self.kept has "drift", which is dropped: set keeps_state = True to keep it'
    assert warning in caplog.messages
    assert _warn_of_dropped.cache_info().misses == 1  # not once for each client and round


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (None, 'the client action "look_up" returned NoneType: return an ActionAnswer'),
        (ActionAnswer({}, {"found": torch.ones(1)}), 'records of the client action "look_up": "found" is a Tensor'),
    ],
)
def test_an_actions_answer_that_cannot_be_used_is_named(answer, says):
    class Mine(FedAvg):
        client_actions = {"look_up": ClientAction(lambda request: answer)}  # noqa: RUF012

        def prepare(self, grid, weights):
            stream = self.ask_clients("look_up")
            stream.answers()
            seen.update(stream.refused)
            return weights

    seen = {}
    run(Mine)
    assert all(says in reason for reason in seen.values())
    assert len(seen) == len(CLIENTS)


@pytest.mark.parametrize("method", ["prepare", "aggregate", "after_aggregation"])
def test_a_method_that_returns_no_weights_is_named(method):
    kind = type("Mine", (FedAvg,), {method: lambda self, *_: None})
    with pytest.raises(TypeError, match=f"^{method} returned NoneType: return weights, a dict of tensors by name"):
        run(kind)
