"""The Inception-v3 that defines FID (Heusel et al. 2017, arXiv 1706.08500), through torch-fidelity.

The user provides the file of its weights. torch-fidelity would unpickle that file without restrictions. This module
therefore reads it as tensors only, and gives torch-fidelity a copy of these tensors.
"""

import hashlib
import io
import pickle
import tempfile
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from fedddpm_app import limits
from fedddpm_app.config import ConfigError
from fedddpm_app.disk.bounded import read_bytes
from fedddpm_app.evaluation.extractors.base import Features, extract, to_rgb
from fedddpm_app.weights import Weights

VERSION = 1  # increased with every change in this file that affects the features
NUM_FEATURES = 2048
NUM_CLASSES = 1008
WEIGHTS_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
_STANDARD_SHA256 = "6726825d"  # the first digits, in the published file's name
_BATCH_SIZE = 64  # the network's input has 299 x 299 pixels
_UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    pickle.UnpicklingError,
)


class InceptionV3:
    """An ``Extractor``: the features "2048" and "logits_unbiased" of torch-fidelity.

    Parameters
    ----------
    weights_path : str
        The value of ``inception-weights``.
    device : torch.device
        The device that the network runs on.

    Attributes
    ----------
    standard : bool
        Whether the weights are the published ones; only then is a Fréchet distance on these features an FID.

    Raises
    ------
    ConfigError
        If the file is missing or holds other weights.
    ImportError
        If torch-fidelity is not installed; the message gives the command.
    """

    name = "inception-v3"
    num_features = NUM_FEATURES

    def __init__(self, weights_path: str, device: torch.device) -> None:
        content = _read(weights_path)
        sha256 = hashlib.sha256(content).hexdigest()
        self.standard = sha256.startswith(_STANDARD_SHA256)
        self.digest = hashlib.sha256(f"{sha256} {VERSION}".encode()).hexdigest()[:16]
        self._network = _create_network(_parse(content, weights_path), weights_path).to(device).eval()
        self.device = device

    def __call__(self, images: Tensor) -> Features:
        """Return the features of ``images`` (uint8, shape (N, C, H, W), C 1 or 3, any N and size)."""
        return extract(self._forward, images, self.device, (NUM_FEATURES, NUM_CLASSES), _BATCH_SIZE)

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        vectors, logits = self._network(to_rgb(images))
        return vectors, logits


def _read(weights_path: str) -> bytes:
    if not weights_path:
        raise ConfigError(
            f"The extractor inception-v3 needs inception-weights, which is empty: download {WEIGHTS_URL} "
            'and give its path, inception-weights = "/path/to/the/file".'
        )
    try:
        return read_bytes(Path(weights_path).expanduser(), limits.NETWORK_BYTES)
    except (OSError, ValueError) as error:
        raise _unusable(weights_path, f"cannot be read ({error})") from error


def _parse(content: bytes, weights_path: str) -> Weights:
    """Read tensors from a file's content, and no other objects that a pickle may hold."""
    _check_unpacked(content, weights_path)
    try:
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise _unusable(weights_path, "holds objects other than tensors, or is damaged") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise _unusable(weights_path, "holds no tensors by name")
    return weights


def _check_unpacked(content: bytes, weights_path: str) -> None:
    """Raise ``ConfigError`` if the members of a zip file, as torch writes it, would unpack to too much."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, *_UNREADABLE):
        return  # an older format of torch, or none, which torch finds out
    size = sum(member.file_size for member in members)
    if size > limits.NETWORK_BYTES or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise _unusable(
            weights_path,
            f"states {size:,} bytes, more than the {limits.NETWORK_BYTES:,} of an Inception-v3, or is compressed",
        )


def _create_network(weights: Weights, weights_path: str) -> nn.Module:
    """Create torch-fidelity's network with these weights; the global random state does not change."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ImportError(f"needs a package that is not installed ({error}): run pip install torch-fidelity") from error
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        copy = Path(folder) / "inception.pth"
        torch.save(weights, copy)
        try:
            network: nn.Module = FeatureExtractorInceptionV3(
                InceptionV3.name, ["2048", "logits_unbiased"], feature_extractor_weights_path=str(copy)
            )
        except RuntimeError as error:
            raise _unusable(weights_path, "holds the weights of another network") from error
    return network


def _unusable(weights_path: str, reason: str) -> ConfigError:
    return ConfigError(
        f'inception-weights = "{weights_path}" {reason}: give the path of the file at {WEIGHTS_URL}.',
        public="its inception-weights cannot be used: the log of its SuperNode says why",
    )
