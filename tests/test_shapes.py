"""A model takes on the shapes of weights: whatever layer they belong to, it then works like a model made that way."""

import pytest
import torch
from torch import nn

from fedddpm_app.shapes import architecture, fit_model, fits
from fedddpm_app.weights import WeightsMismatchError, load_into, snapshot


class Net(nn.Module):
    """One layer of each kind; ``width`` sets all sizes, and two layers share their weights."""

    def __init__(self, width):
        super().__init__()
        self.embedding = nn.Embedding(5, width)
        self.convolution = nn.Conv2d(width, 2 * width, 3, padding=1, groups=2)
        self.batch_norm = nn.BatchNorm2d(2 * width)
        self.transposed = nn.ConvTranspose2d(2 * width, width, 2, stride=2, groups=2)
        self.group_norm = nn.GroupNorm(2, width)
        self.layer_norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)
        self.tied = nn.Linear(width, width)
        self.tied.weight = self.linear.weight

    def forward(self, labels, image):
        x = self.embedding(labels)[:, :, None, None] * image
        x = self.group_norm(self.transposed(self.batch_norm(self.convolution(x))))
        return self.tied(self.linear(self.layer_norm(x.mean((2, 3)))))


def test_a_fitted_model_works_like_one_of_that_size():
    small, model = Net(4), Net(8)
    weights = snapshot(small)
    assert not fits(model, weights)
    assert fit_model(model, weights) is model
    assert fits(model, weights)
    load_into(model, weights)
    labels, image = torch.tensor([1, 4, 0]), torch.randn(3, 1, 4, 4)
    assert torch.equal(model(labels, image), small(labels, image))
    assert str(model) == str(small), "the sizes that the layers print are attributes of their own"
    assert model.tied.weight is model.linear.weight
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in small.parameters())


def test_what_does_not_change_keeps_its_tensor():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    before = list(model.parameters())
    fit_model(model, snapshot(nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 4), nn.Linear(4, 2))))
    kept = [mine is theirs for mine, theirs in zip(model.parameters(), before, strict=True)]
    assert kept == [False, False, False, True, True, True]


def test_other_names_are_refused():
    with pytest.raises(WeightsMismatchError, match=r"names differ, for example 1\.bias, 1\.weight"):
        fit_model(nn.Sequential(nn.Linear(3, 4)), snapshot(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))))


def test_the_digest_is_of_names_shapes_and_dtypes_alone():
    weights = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}
    digest = architecture(weights)
    assert len(digest) == 12
    assert digest == architecture({"b": torch.ones(4), "a": torch.ones(2, 3)})
    others = [{"a": torch.zeros(3, 2)}, {"a": torch.zeros(2, 3).double()}, {"c": torch.zeros(4)}]
    assert all(digest != architecture(weights | other) for other in others)
