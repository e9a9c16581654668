"""Client actions: requests and answers of every kind, over every transport, and answers that are not as declared."""

import pytest
import torch

from fedddpm_app import ActionAnswer, ClientAction, FedDDPM, FederatedStrategy, ReplyRefusedError, simulate
from tests.algorithms.problems import CLIENTS, Point, quadratic

SENT = {"scale": 2.0, "steps": [1, 2, 3], "name": "x", "flag": True}


def moments(request):
    """Answer with numbers and tensors that depend on everything that was sent, and on the client's data."""
    a, b = request.task.train_data(request.partition_id).batch(torch.arange(2))
    moment = (a * b).mean(0).float() * request.values["scale"] + sum(request.weights.values(), torch.zeros(()))
    numbers = {"num-examples": len(a), "sum": float(sum(request.values["steps"])), "pair": [1.0, 2.0]}
    return ActionAnswer(numbers, {"moments": {"m": moment, "count": torch.tensor([7, 8])}})


DECLARED = {"metrics": ("num-examples", "sum"), "lists": {"pair": 2}, "records": ("moments",)}
LIKE = {"moments": {"m": torch.zeros(3), "count": torch.zeros(2, dtype=torch.int64)}}


class Asks(FederatedStrategy):
    client_actions = {"moments": ClientAction(moments, **DECLARED)}  # noqa: RUF012
    seen: list = []  # noqa: RUF012

    def prepare(self, grid, weights):
        type(self).seen = [self.collect(**options) for options in ({}, {"partitions": [2, 0]})]
        return weights

    def collect(self, **options):
        stream = self.ask_clients("moments", values=SENT, like=LIKE, timeout=60.0, **options)
        answers = {reply.partition_id: (reply.load("moments"), dict(reply.metrics)) for reply in stream.answers()}
        return answers, stream.refused


def ask(strategy=Asks, **settings):
    simulate(strategy, Point(), quadratic, CLIENTS, rounds=1, local_steps=1, lr=0.1, **settings)
    return strategy.seen


@pytest.mark.parametrize(
    ("transport", "wire_dtype"), [("flat", "fp32"), ("flat", "bf16"), ("shared-memory", "fp32"), ("arrays", "fp32")]
)
def test_values_go_out_and_numbers_and_tensors_come_back(transport, wire_dtype):
    (every, refused), (some, _) = ask(transport=transport, wire_dtype=wire_dtype)
    assert refused == {}
    assert list(every) == [0, 1, 2]
    assert list(some) == [0, 2]
    for partition, (records, metrics) in every.items():
        a, b = CLIENTS[partition]
        expected = (a[:2] * b[:2]).mean(0).float() * 2.0
        assert torch.allclose(records["m"], expected, rtol=1e-2 if wire_dtype == "bf16" else 1e-6)
        assert records["count"].tolist() == [7, 8]
        assert (metrics["sum"], metrics["pair"], metrics["num-examples"]) == (6.0, [1.0, 2.0], 2)


BAD = {
    "no tensors": lambda answer: ActionAnswer(answer.metrics),
    "another shape": lambda answer: ActionAnswer(
        answer.metrics, {"moments": {"m": torch.zeros(4), "count": torch.ones(2)}}
    ),
    "not finite": lambda answer: ActionAnswer(
        answer.metrics, {"moments": answer.records["moments"] | {"m": torch.full((3,), torch.nan)}}
    ),
    "a longer list": lambda answer: ActionAnswer({**answer.metrics, "pair": [1.0] * 3}, answer.records),
    "a missing number": lambda answer: ActionAnswer({"num-examples": 1, "pair": [1.0, 2.0]}, answer.records),
    "no examples": lambda answer: ActionAnswer({**answer.metrics, "num-examples": 0}, answer.records),
    "too many examples": lambda answer: ActionAnswer({**answer.metrics, "num-examples": 10**9}, answer.records),
    "an exception": lambda answer: 1 / 0,
}


@pytest.mark.parametrize("bad", BAD)
def test_an_answer_that_is_not_as_declared_is_refused_and_the_others_count(bad):
    def odd(request):
        answer = moments(request)
        return BAD[bad](answer) if request.partition_id == 1 else answer

    class Odd(Asks):
        client_actions = {"moments": ClientAction(odd, **DECLARED)}  # noqa: RUF012

    (every, refused), _ = ask(Odd)
    assert list(every) == [0, 2]
    assert list(refused) == [1]


def test_a_strategy_can_refuse_what_is_as_declared():
    class Picky(Asks):
        def collect(self, **options):
            def check(reply):
                if reply.partition_id == 2:
                    raise ReplyRefusedError("not today")

            return super().collect(check=check, **options)

    (every, refused), _ = ask(Picky)
    assert list(every) == [0, 1]
    assert refused == {2: "not today"}


def test_a_record_without_a_reference_is_an_error_of_the_strategy():
    class Forgot(Asks):
        def prepare(self, grid, weights):
            with pytest.raises(KeyError, match="give a reference for it in ``like``"):
                self.ask_clients("moments", values=SENT)
            return weights

    ask(Forgot)


def test_actions_are_inherited_and_have_names_that_flower_takes():
    class More(FedDDPM):
        client_actions = {"more": ClientAction(moments)}  # noqa: RUF012

    assert list(More.client_actions) == ["pretrain", "generate", "share_images", "more"]
    assert list(FedDDPM.client_actions) == ["pretrain", "generate", "share_images"]
    with pytest.raises(TypeError, match="must be a Python identifier"):
        type("Bad", (FederatedStrategy,), {"client_actions": {"a-b": ClientAction(moments)}})
