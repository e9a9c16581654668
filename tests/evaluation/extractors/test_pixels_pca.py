import pytest
import torch
from threadpoolctl import threadpool_limits

from fedddpm_app.config import ConfigError
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.evaluation.extractors import load_pixels_pca
from fedddpm_app.evaluation.extractors import pixels_pca as module
from tests.evaluation.extractors.conftest import CPU


def test_features_are_an_orthogonal_projection_of_the_centred_pixels(digits, tmp_path):
    train, test = digits
    extractor = load_pixels_pca(train, "digits", tmp_path, CPU)
    features = extractor(test.images)
    assert features.logits is None
    assert extractor.num_features == features.vectors.shape[1] == 64
    centred = test.images.flatten(1) / 255 - train.images.flatten(1).double().mean(0) / 255
    # All 64 components are kept, so that distances are those of the pixels.
    assert torch.allclose(features.vectors.norm(dim=1).double(), centred.norm(dim=1), rtol=1e-4)
    variances = extractor(train.images).vectors.var(dim=0)
    assert (variances.diff() < 1e-5).all()


def test_the_signs_and_bits_do_not_depend_on_threads(digits, tmp_path):
    digests = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            digests.append(load_pixels_pca(digits[0], "digits", tmp_path / str(threads), CPU).digest)
    assert digests[0] == digests[1]


def test_components_are_cached(digits, tmp_path, monkeypatch):
    first = load_pixels_pca(digits[0], "digits", tmp_path, CPU)
    monkeypatch.setattr(module, "_fit", lambda *_: pytest.fail("computed again"))
    assert load_pixels_pca(digits[0], "digits", tmp_path, CPU).digest == first.digest


@pytest.mark.parametrize(
    ("count", "size", "features"), [(5, (1, 8, 8), 4), (200, (3, 2, 3), 18), (90, (1, 40, 50), 64)]
)
def test_the_number_of_components(tmp_path, rgb_images, count, size, features):
    images = torch.randint(256, (count, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    extractor = load_pixels_pca(ImageTensors(images), "noise", tmp_path, CPU)
    assert extractor(images).vectors.shape == (count, features)
    assert extractor(rgb_images[:, : size[0]]).vectors.shape == (5, features)
    assert extractor(images[:0]).vectors.shape == (0, features)


def test_many_images_are_thinned_out_evenly(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_MAX_IMAGES", 3)
    images = torch.tensor([0, 9, 9, 9, 100, 9, 9, 9, 200], dtype=torch.uint8).reshape(9, 1, 1, 1)
    weights = module._fit(images)
    assert float(weights["mean"]) == pytest.approx(100 / 255)


def test_one_image_is_not_enough(tmp_path):
    with pytest.raises(ConfigError, match="at least two training images, but the data set has 1"):
        load_pixels_pca(ImageTensors(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)), "one", tmp_path, CPU)
