import pytest
import torch

from fedddpm_app.evaluation.extractors.base import extract, features_digest, resize, to_rgb
from tests.evaluation.extractors.conftest import CPU


@pytest.mark.parametrize("count", [0, 1, 4, 9])
def test_images_go_through_in_batches_and_keep_their_order(count):
    sizes = []

    def forward(images):
        sizes.append(len(images))
        return images.float().flatten(1)[:, :3], images.float().flatten(1)[:, :1]

    images = torch.arange(count * 4, dtype=torch.uint8).reshape(count, 1, 2, 2)
    features = extract(forward, images, CPU, (3, 1), batch_size=4)
    assert torch.equal(features.vectors, images.flatten(1)[:, :3].float())
    assert torch.equal(features.logits, images.flatten(1)[:, :1].float())
    assert sizes == [4] * (count // 4) + [count % 4] * bool(count % 4)


def test_an_extractor_without_classes_has_no_logits():
    images = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    assert extract(lambda x: (torch.ones(2, 3), torch.ones(2, 0)), images, CPU, (3, 0)).logits is None


def test_features_carry_no_graph():
    weight = torch.ones(1, requires_grad=True)
    images = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    features = extract(lambda x: (weight.expand(2, 1), weight.expand(2, 1)), images, CPU, (1, 1))
    assert not features.vectors.requires_grad
    assert not features.logits.requires_grad


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 1, 4, 4), torch.zeros(2, 2, 4, 4, dtype=torch.uint8), torch.zeros(1, 4, 4, dtype=torch.uint8)],
    ids=["float", "two channels", "three dimensions"],
)
def test_images_of_another_kind_are_refused(images):
    with pytest.raises(ValueError, match="instead of uint8"):
        extract(lambda x: (x, x), images, CPU, (1, 1))


def test_grey_is_repeated_and_rgb_kept(rgb_images):
    assert torch.equal(to_rgb(rgb_images), rgb_images)
    assert torch.equal(to_rgb(rgb_images[:, :1]), rgb_images[:, :1].repeat(1, 3, 1, 1))


def test_shrinking_does_not_alias():
    stripes = torch.tensor([0.0, 1.0]).repeat(16).expand(1, 1, 32, 32)
    assert resize(stripes, (32, 32)) is stripes
    assert torch.allclose(resize(stripes, (8, 8))[..., 1:-1], torch.tensor(0.5), atol=0.02)


def test_the_digest_depends_on_names_values_shapes_dtypes_and_settings_and_not_on_order():
    a, b = torch.arange(4.0), torch.ones(2)
    digest = features_digest({"a": a, "b": b}, "x", 1)
    assert len(digest) == 16
    assert digest == features_digest({"b": b, "a": a}, "x", 1)
    others = [
        features_digest({"a": a, "c": b}, "x", 1),
        features_digest({"a": a + 1e-6, "b": b}, "x", 1),
        features_digest({"a": a.reshape(2, 2), "b": b}, "x", 1),
        features_digest({"a": a.view(torch.int32), "b": b}, "x", 1),
        features_digest({"a": a, "b": b}, "x", 2),
    ]
    assert len({digest, *others}) == 6
