"""Exchanges of parts: which are refused, what a client must return, and which norms are compared."""

import pytest
import torch

from fedddpm_app.client.handlers import _pack_trained
from fedddpm_app.config import ConfigError, TransportConfig
from fedddpm_app.federation.admission import Admission
from fedddpm_app.federation.messages.records import EXCHANGE
from fedddpm_app.federation.messages.replies import Reply, ReplyRefusedError
from fedddpm_app.federation.rounds.exchanged import WHOLE, Exchanged, checked_exchanges
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.inprocess.grid import InProcessGrid
from fedddpm_app.inprocess.simulate import simulate
from fedddpm_app.transport import ClientEnd, Transport
from fedddpm_app.transport.outbox import Outbox
from fedddpm_app.transport.wire import dequantise
from tests.algorithms.problems import CLIENTS, RATE, STEPS, gradient, gradient_steps, quadratic, same, shares, start
from tests.algorithms.test_feddiffuse import Three, values

NAMES = {name: torch.zeros(1) for name in "abc"}
A, AB = frozenset("a"), frozenset("ab")


@pytest.mark.parametrize(
    ("exchange", "known", "reason"),
    [
        (Exchanged(None, frozenset("ad")), [3], "the model has no weights d"),
        (Exchanged(A, AB), [3], "b would be returned, but not sent"),
        (Exchanged(A, None), [3], "b, c would be returned, but not sent"),
        (Exchanged(None, frozenset()), [3], "nothing would be returned"),
        (Exchanged(A, A), [2], "it has no model of its own yet: send it all weights"),
    ],
)
def test_an_exchange_that_cannot_work_is_refused(exchange, known, reason):
    with pytest.raises(ValueError, match=rf"exchanged\(...\)\[3\]: {reason}"):
        checked_exchanges({3: exchange}, [2, 3], NAMES, known)


def test_a_client_that_is_not_named_exchanges_everything():
    everything = frozenset(NAMES)
    given = {1: Exchanged(everything, everything), 2: Exchanged(AB, A), 9: Exchanged(A, A)}
    assert checked_exchanges(given, [0, 1, 2], NAMES, [2]) == {0: WHOLE, 1: WHOLE, 2: Exchanged(AB, A)}


class Halves(FederatedStrategy):
    """Client 0 returns the decoder alone, client 1 encoder and decoder, client 2 everything; nobody keeps a model."""

    def exchanged(self, server_round, partitions):
        return {0: Exchanged(None, frozenset({"d"})), 1: Exchanged(None, frozenset({"e", "d"}))}


def test_each_weight_is_the_mean_over_the_clients_that_return_it():
    """Any strategy can exchange parts; n_i are 3, 5 and 2."""
    w, n = start(), shares(CLIENTS)
    for _ in range(3):
        v = [gradient_steps(w, STEPS, RATE, lambda x, c=c: gradient(c, x)) for c in CLIENTS]
        e = (n[1] * v[1][0] + n[2] * v[2][0]) / (n[1] + n[2])
        w = [e, v[2][1], sum(n[i] * v[i][2] for i in range(3))]
        w = start() * 0 + w
    ended, _ = simulate(Halves, Three(), quadratic, CLIENTS, 3, STEPS, RATE)
    assert same(values(ended), w)


def test_a_rule_that_needs_whole_models_is_refused_before_anything_is_sent(monkeypatch):
    sent = []

    class Lists(InProcessGrid):
        def _answer(self, message):
            sent.append(message.metadata.message_type)
            return super()._answer(message)

    monkeypatch.setattr("fedddpm_app.inprocess.simulate.InProcessGrid", Lists)
    with pytest.raises(ConfigError, match=r'aggregator = "fedmedian" needs all weights .* use aggregator = "fedavg"'):
        simulate(Halves, Three(), quadratic, CLIENTS, 1, STEPS, RATE, aggregator="fedmedian")
    assert set(sent) == {"query"}


def test_a_reply_with_other_weights_than_asked_for_is_refused(monkeypatch):
    """A client that ignores the names in the message returns everything."""

    class Ignores(InProcessGrid):
        def _answer(self, message):
            message.content.pop(EXCHANGE, None)
            return super()._answer(message)

    monkeypatch.setattr("fedddpm_app.inprocess.simulate.InProcessGrid", Ignores)
    _, (row,) = simulate(Halves, Three(), quadratic, CLIENTS, 1, STEPS, RATE)
    assert sorted(row["train/client_loss"]) == ["2"]
    assert all("parameter names differ" in row["train/left_out"][client] for client in "01")


def test_the_norms_of_different_parts_are_not_compared_with_each_other(config):
    admission = Admission(config)
    small, large = Exchanged(None, A).kind, Exchanged(None, AB).kind
    assert small != large
    assert "arrays" not in (small, large)
    for kind, norm in [(small, 1.0)] * 3 + [(large, 500.0)] * 3:
        admission.judge(Reply(0, None, None, {}, norm, kind=kind), lambda: 5000.0)
    assert {kind: len(norms) for kind, norms in admission.history.items()} == {small: 3, large: 3}
    admission.judge(Reply(0, None, None, {}, 500.0, kind=large), lambda: 1.0)
    with pytest.raises(ReplyRefusedError, match="more than max-update-norm"):
        admission.judge(Reply(0, None, None, {}, 500.0, kind=small), lambda: 1.0)


def test_the_first_change_of_a_part_is_measured_by_the_parts_own_norm():
    """The limit is 100 times a tenth of the norm of what the change starts from: here of the decoder, 2."""

    def loss(model, batch):
        return (model.d * -1000.0).sum() if len(batch[0]) == 3 else quadratic(model, batch)

    refused = {}
    for limit in ("100x", "100000x"):
        _, (row,) = simulate(Halves, Three(), loss, CLIENTS, 1, 1, RATE, max_update_norm=limit)  # it moves by 50
        refused[limit] = row.get("train/left_out", {})
    assert list(refused["100x"]) == ["0"]
    assert "its update has the norm 50" in refused["100x"]["0"]
    assert not refused["100000x"]


class Asks:
    """A request that asks for some weights."""

    def __init__(self, names, end):
        self.returned, self.end = [*names], end


def test_the_rounding_error_of_a_part_waits_until_the_part_is_returned_again():
    """With int8-delta, a client adds the error of its last reply; it keeps that of a part that it does not return."""
    base = {name: torch.zeros(2, 300) for name in "ab"}
    trained = {name: torch.randn(2, 300, generator=torch.Generator().manual_seed(0)) for name in "ab"}
    transport = Transport(TransportConfig("flat", "int8-delta"))
    end = ClientEnd(transport.pack({}).record, "int8-delta", 0)
    _, first = _pack_trained(Asks("a", end), trained, base, {})
    assert list(first) == ["a"]
    assert first["a"].abs().max() > 0
    _, second = _pack_trained(Asks("b", end), trained, base, first)
    assert torch.equal(second["a"], first["a"])
    packed, third = _pack_trained(Asks("a", end), trained, base, second)
    assert torch.equal(third["b"], second["b"])
    sent = transport.receive(packed.record, transport.expect({"a": base["a"]}, {"a": base["a"]}), 0).sent
    assert torch.allclose(dequantise(sent["a"], sent["a//scales"]) + third["a"], trained["a"] + first["a"], atol=1e-6)


def test_the_outbox_releases_the_records_that_are_not_sent_any_more():
    transport = Transport(TransportConfig("shared-memory", "fp32"))
    try:
        outbox = Outbox(transport)
        whole, part = (outbox.pack(name, None, {"a": torch.zeros(3)}).record for name in ("arrays", "arrays-d"))
        end = ClientEnd(whole, "fp32", 0)
        outbox.keep_only({"arrays-d"})
        assert torch.equal(end.unpack(part)["a"], torch.zeros(3))
        with pytest.raises(ValueError, match="cannot be read"):
            end.unpack(whole)
    finally:
        transport.close()
