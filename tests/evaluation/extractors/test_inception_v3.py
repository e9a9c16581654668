import pickle
import sys
import types

import pytest
import torch
from torch import nn

from fedddpm_app.client.site_failures import public_text
from fedddpm_app.config import ConfigError
from fedddpm_app.evaluation.extractors import InceptionV3
from fedddpm_app.evaluation.extractors import inception_v3 as module
from tests.evaluation.extractors.conftest import CPU


class StandIn(nn.Module):
    """Has the constructor and the outputs of torch-fidelity's class, and loads files as carelessly."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None, **kwargs):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 2048, 1), nn.Linear(2048, 1008)
        self.features_list = features_list
        if feature_extractor_weights_path is not None:
            self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    def forward(self, images):
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        assert self.features_list == ["2048", "logits_unbiased"]
        assert not self.training
        vectors = self.conv(images.float()).mean(dim=(2, 3))
        return vectors, vectors @ self.fc.weight.T


@pytest.fixture
def torch_fidelity(monkeypatch):
    package = types.ModuleType("torch_fidelity")
    inception = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    inception.FeatureExtractorInceptionV3 = StandIn
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, inception.__name__, inception)


@pytest.fixture
def weights_path(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(StandIn("", []).state_dict(), path)
    return path


def test_features_are_torch_fidelitys(torch_fidelity, weights_path, rgb_images):
    state = torch.get_rng_state()
    extractor = InceptionV3(str(weights_path), CPU)
    assert torch.equal(torch.get_rng_state(), state)
    features = extractor(rgb_images)
    reference = StandIn("", ["2048", "logits_unbiased"], weights_path).eval()
    with torch.no_grad():
        vectors, logits = reference(rgb_images)
    torch.testing.assert_close(features.vectors, vectors)
    torch.testing.assert_close(features.logits, logits)
    assert extractor(rgb_images[:0, :1]).logits.shape == (0, 1008)
    torch.testing.assert_close(extractor(rgb_images[:, :1].expand(-1, 3, -1, -1)), extractor(rgb_images[:, :1]))


def test_only_the_published_file_is_standard(torch_fidelity, weights_path, monkeypatch):
    extractor = InceptionV3(str(weights_path), CPU)
    assert not extractor.standard
    sha256 = module.hashlib.sha256(weights_path.read_bytes()).hexdigest()
    monkeypatch.setattr(module, "_STANDARD_SHA256", sha256[:8])
    assert InceptionV3(str(weights_path), CPU).standard
    torch.save(StandIn("", []).state_dict(), weights_path)
    assert InceptionV3(str(weights_path), CPU).digest != extractor.digest


class Hostile:
    def __init__(self, mark):
        self.span = mark

    def __reduce__(self):
        return (open, (str(self.span), "w"))


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))])
def test_a_hostile_pickle_is_refused_and_never_run(torch_fidelity, weights_path, tmp_path, save):
    mark = tmp_path / "executed"
    save(StandIn("", []).state_dict() | {"extra": Hostile(mark)}, weights_path)
    with pytest.raises(ConfigError, match="holds objects other than tensors"):
        InceptionV3(str(weights_path), CPU)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 cut off", bytes(range(256))])
def test_a_damaged_file_is_refused(torch_fidelity, weights_path, content):
    weights_path.write_bytes(content)
    with pytest.raises(ConfigError, match=r'inception-weights = ".*weights\.pth" .*6726825d\.pth'):
        InceptionV3(str(weights_path), CPU)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.ones(2), "holds no tensors by name"),
        ({"conv.weight": 1}, "holds no tensors by name"),
        ({"conv.weight": torch.ones(2)}, "holds the weights of another network"),
    ],
)
def test_other_weights_are_refused(torch_fidelity, weights_path, value, reason):
    torch.save(value, weights_path)
    with pytest.raises(ConfigError, match=reason):
        InceptionV3(str(weights_path), CPU)


def test_a_path_is_needed(torch_fidelity, tmp_path):
    with pytest.raises(ConfigError, match=r'inception-weights, which is empty: download .*6726825d\.pth.*"/path'):
        InceptionV3("", CPU)
    with pytest.raises(ConfigError, match=r'inception-weights = ".*/none\.pth" cannot be read'):
        InceptionV3(str(tmp_path / "none.pth"), CPU)


@pytest.mark.parametrize("content", [None, b"", b"no weights", {"conv.weight": 1}, {"conv.weight": torch.ones(2)}])
def test_a_site_says_nothing_of_its_file(torch_fidelity, tmp_path, content):
    """Its path may be a relative one, and what is wrong with the file stays in its own log."""
    path = tmp_path / "weights.pth"
    if isinstance(content, dict):
        torch.save(content, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        InceptionV3(str(path), CPU)
    assert public_text(refused.value) == "its inception-weights cannot be used: the log of its SuperNode says why"


def test_a_missing_package_is_named_with_the_command(weights_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r"pip install torch-fidelity$"):
        InceptionV3(str(weights_path), CPU)


def test_the_real_torch_fidelity_takes_weights_the_same_way(tmp_path, rgb_images, monkeypatch):
    real = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    path = tmp_path / "weights.pth"
    random_network = make_real_network(real, monkeypatch)
    torch.save(random_network.state_dict(), path)
    features = InceptionV3(str(path), CPU)(rgb_images[:2])
    with torch.no_grad():
        vectors, logits = random_network(rgb_images[:2])
    torch.testing.assert_close(features.vectors, vectors)
    torch.testing.assert_close(features.logits, logits)


def make_real_network(real, monkeypatch):
    """Return torch-fidelity's network with random weights, in place of the download."""
    with monkeypatch.context() as patch:
        patch.setattr(real, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(real.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        return real.FeatureExtractorInceptionV3("inception-v3", ["2048", "logits_unbiased"], verbose=False)
