import sys

import pytest
import torch

from fedddpm_app.config import ConfigError
from fedddpm_app.evaluation.extractors import EXTRACTORS, Pretrained, create_extractor
from tests.evaluation.extractors.conftest import CPU


def create(name, train, cache_dir, **options):
    return create_extractor(name, train=train, data_digest="digits", cache_dir=cache_dir, device=CPU, **options)


@pytest.mark.parametrize("name", ["classifier", "pixels-pca", "efficientnet-lite0"])
def test_each_name_makes_its_extractor(digits, classifier, cache_dir, name):
    if name == "efficientnet-lite0":
        pytest.importorskip("efficientnet_lite_pytorch")
    assert name in EXTRACTORS
    extractor = create(name, digits[0], cache_dir)
    assert extractor.name == name
    assert len(extractor.digest) == 16
    features = extractor(digits[1].images[:3])
    assert features.vectors.shape == (3, extractor.num_features)
    assert features.vectors.dtype == torch.float32
    assert not torch.equal(features.vectors[0], features.vectors[1])


def test_auto_takes_inception_then_the_classifier_then_components(digits, classifier, cache_dir, monkeypatch):
    train, _ = digits
    assert create("auto", train, cache_dir).name == "classifier"
    assert create("auto", train.without_labels(), cache_dir).name == "pixels-pca"
    monkeypatch.setattr(Pretrained, "load", lambda *arguments: arguments)
    found = create("auto", train, cache_dir, inception_weights="w.pth")
    assert found == (Pretrained("eval-extractor", "inception-v3", "classifier"), "w.pth", CPU)


def test_inception_needs_its_weights(digits, cache_dir):
    with pytest.raises(ConfigError, match=r"^eval-extractor = .inception-v3. needs inception-weights"):
        create("inception-v3", digits[0], cache_dir)


def test_an_unknown_name_is_refused(digits, cache_dir):
    with pytest.raises(ConfigError, match='eval-extractor = "inception" is not known: use one of auto, classifier'):
        create("inception", digits[0], cache_dir)


@pytest.mark.parametrize(
    ("name", "package"), [("efficientnet-lite0", "efficientnet_lite_pytorch"), ("inception-v3", "torch_fidelity")]
)
def test_missing_packages_are_reported_of_the_key_that_asks(tmp_path, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    torch.save({"weight": torch.ones(1)}, tmp_path / "w.pth")
    asked = Pretrained("pdfed-embedder", name, "pixels-pca")
    expected = rf'^pdfed-embedder = "{name}" needs .*pip install .*, or use pdfed-embedder = "pixels-pca"\.$'
    with pytest.raises(ConfigError, match=expected):
        asked.load(str(tmp_path / "w.pth"), CPU)


def test_another_name_is_not_a_pretrained_extractor():
    with pytest.raises(ValueError, match='eval-extractor = "classifier" is not the name of a pretrained'):
        Pretrained("eval-extractor", "classifier", "auto").load("", CPU)
