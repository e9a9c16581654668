import pytest
import torch

from fedddpm_app.transport.wire import (
    BLOCK,
    add_residual,
    down_dtype,
    get_wire,
    is_quantised,
    quantise,
)

BASE = {
    "conv.weight": torch.randn(20, 30),
    "norm.weight": torch.randn(4, 5),
    "time_embedding.linear_1.weight": torch.randn(6, 7),
    "conv.bias": torch.randn(9),
    "steps": torch.tensor(3),
}


def moved(step=0.01):
    return {n: t + step * torch.randn_like(t) if t.is_floating_point() else t + 1 for n, t in BASE.items()}


def trip(dtype, weights):
    wire = get_wire(dtype)
    sent = wire.encode(weights, BASE)
    like = wire.like(weights)
    assert {n: (t.shape, t.dtype) for n, t in sent.items()} == {n: (t.shape, t.dtype) for n, t in like.items()}
    return sent, wire.decode(sent, weights, BASE)


def test_fp32_is_exact_and_copies_nothing():
    weights = moved()
    sent, back = trip("fp32", weights)
    assert all(sent[n] is t for n, t in weights.items())
    assert all(torch.equal(back[n], t) for n, t in weights.items())


def test_bf16_keeps_eight_bits_and_the_dtypes():
    weights = moved() | {"double": torch.randn(3, dtype=torch.float64)}
    _, back = trip("bf16", weights)
    for name, tensor in weights.items():
        assert back[name].dtype == tensor.dtype
        assert torch.allclose(back[name].double(), tensor.double(), rtol=2**-8, atol=0)
    assert torch.equal(back["double"], weights["double"])
    assert torch.equal(back["steps"], weights["steps"])


def test_int8_rounds_differences_to_half_a_step_and_leaves_the_rest_in_full():
    weights = moved()
    sent, back = trip("int8-delta", weights)
    assert [n for n, t in sent.items() if t.dtype == torch.int8] == ["conv.weight"]
    for name in set(weights) - {"conv.weight"}:
        assert torch.equal(back[name], weights[name])
    difference = (weights["conv.weight"] - BASE["conv.weight"]).reshape(-1)
    error = (back["conv.weight"] - weights["conv.weight"]).reshape(-1).abs()
    for start in range(0, len(difference), BLOCK):
        step = difference[start : start + BLOCK].abs().max() / 127
        assert error[start : start + BLOCK].max() <= 0.51 * step + 1e-6


def test_what_is_lost_is_what_does_not_arrive():
    weights = moved()
    sent, back = trip("int8-delta", weights)
    lost = get_wire("int8-delta").lost(weights, sent, BASE)
    assert list(lost) == ["conv.weight"]
    assert torch.equal(lost["conv.weight"], weights["conv.weight"] - back["conv.weight"])
    assert all(not get_wire(dtype).lost(weights, weights, BASE) for dtype in ("fp32", "bf16"))


def test_a_difference_of_zero_is_sent_as_zero():
    numbers, scales = quantise(torch.zeros(3, 300))
    assert not numbers.any()
    assert not scales.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_in_a_scale(value):
    """The server's check looks at what was sent."""
    _, scales = quantise(torch.full((300,), value))
    assert not torch.isfinite(scales).all()


def test_error_feedback_makes_up_for_rounding():
    """A client that moves by the same small step in every round arrives where it would without rounding."""
    torch.manual_seed(0)
    step = {"conv.weight": 1e-3 * torch.rand(20, 30) ** 8, **{n: torch.zeros_like(t) for n, t in BASE.items()}}
    step["conv.weight"] = 1e-3 * torch.rand(20, 30) ** 8
    wire, residual = get_wire("int8-delta"), {}
    server = plain = {n: t.clone() for n, t in BASE.items()}
    without = server
    for _ in range(50):
        weights = add_residual({n: server[n] + step[n] for n in BASE}, residual)
        sent = wire.encode(weights, server)
        arrived, residual = wire.decode(sent, BASE, server), wire.lost(weights, sent, server)
        server = arrived
        plain = {n: plain[n] + step[n] for n in BASE}
        bare = {n: without[n] + step[n] for n in BASE}
        without = wire.decode(wire.encode(bare, without), BASE, without)

    def off(weights):
        return float((weights["conv.weight"] - plain["conv.weight"]).norm())

    assert off(server) < 0.1 * off(without)


def test_what_is_rounded():
    assert is_quantised("down.conv.weight", torch.ones(2, 2))
    for name in (
        "mid.norm1.weight",
        "time_emb_proj.weight",
        "time_embedding.linear_1.weight",
        "class_embedding.weight",
    ):
        assert not is_quantised(name, torch.ones(2, 2))
    assert not is_quantised("conv.bias", torch.ones(2))
    assert not is_quantised("steps", torch.ones(2, 2, dtype=torch.int64))


def test_the_server_sends_no_differences():
    assert [down_dtype(dtype) for dtype in ("fp32", "bf16", "int8-delta")] == ["fp32", "bf16", "fp32"]
