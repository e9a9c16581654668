import pytest
import torch
from torch import nn

from fedddpm_app import weights as W  # noqa: N812


def test_snapshot_and_load_round_trip():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = W.snapshot(model)
    with torch.no_grad():
        model[0].weight.add_(1)
    assert not torch.equal(W.snapshot(model)["0.weight"], before["0.weight"])
    W.load_into(model, before)
    assert all(torch.equal(v, before[k]) for k, v in W.snapshot(model).items())


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"b": torch.zeros(2)}, "names differ"),
        ({"a": torch.zeros(1, 2)}, "a is torch.float32"),
        ({"a": torch.zeros(2, dtype=torch.float64)}, "torch.float64"),
        ({"a": torch.zeros(())}, "a is"),
    ],
)
def test_nothing_is_broadcast_or_cast(other, says):
    reference = {"a": torch.zeros(2)}
    for function in (W.check_match, lambda x, y: W.lerp(x, y, 0.5), lambda x, y: W.weighted_mean([(x, 1), (y, 1)])):
        with pytest.raises(W.WeightsMismatchError, match=says):
            function(reference, other)


def test_weighted_mean_is_the_mean_and_one_model_is_itself():
    a, b = {"x": torch.tensor([1.0, 2.0])}, {"x": torch.tensor([4.0, 8.0])}
    assert torch.allclose(W.weighted_mean([(a, 1), (b, 2)])["x"], torch.tensor([3.0, 6.0]))
    assert torch.equal(W.weighted_mean([(a, 7)])["x"], a["x"])
    doubled = W.weighted_mean([(a, 1), (b, 2)])["x"]
    assert torch.allclose(W.weighted_mean([(a, 1), (b, 1), (b, 1)])["x"], doubled)
    assert torch.equal(a["x"], torch.tensor([1.0, 2.0]))


def test_lerp_and_finiteness():
    a, b = {"x": torch.zeros(2)}, {"x": torch.full((2,), 4.0)}
    assert torch.equal(W.lerp(a, b, 0.25)["x"], torch.ones(2))
    assert W.is_finite(b)
    assert not W.is_finite({"x": torch.tensor([1.0, float("nan")])})
    assert not W.is_finite({"x": torch.tensor([float("inf"), 0.0])})


def test_a_mean_by_name_is_over_those_that_have_the_name():
    generator = torch.Generator().manual_seed(0)
    models = [{n: torch.randn(4, generator=generator, dtype=torch.float64) for n in "abc"} for _ in range(3)]
    start, sizes = {name: torch.zeros(4, dtype=torch.float64) for name in "abcd"}, (3, 5, 2)
    parts = [(W.select(models[0], "ab"), 3), (W.select(models[1], "b"), 5), (W.select(models[2], "ab"), 2)]
    found = W.mean_by_name(parts, start)
    assert list(found) == list("abcd")
    assert torch.allclose(found["a"], (3 * models[0]["a"] + 2 * models[2]["a"]) / 5, rtol=0, atol=1e-10)
    expected = sum(n * m["b"] for n, m in zip(sizes, models, strict=True)) / 10
    assert torch.allclose(found["b"], expected, rtol=0, atol=1e-10)
    assert found["c"] is start["c"]
    assert found["d"] is start["d"]
    with pytest.raises(W.WeightsMismatchError, match="names are not known, for example e"):
        W.mean_by_name([({"e": start["a"]}, 1)], start)


def test_a_mean_by_name_of_whole_models_is_the_weighted_mean_bit_for_bit():
    generator = torch.Generator().manual_seed(1)
    models = [({n: torch.randn(7, generator=generator) for n in "ab"}, size) for size in (3, 5, 2)]
    by_name, whole = W.mean_by_name(models, models[0][0]), W.weighted_mean(models)
    assert all(torch.equal(by_name[name], whole[name]) for name in "ab")


def test_a_digest_does_not_depend_on_the_order_of_the_names():
    weights = {"b": torch.ones(2), "a": torch.zeros(3)}
    assert W.digest(weights) == W.digest(dict(reversed(weights.items())))
    assert W.digest(weights) != W.digest({"a": torch.ones(2), "b": torch.zeros(3)})
