"""Principal components of the real training images' pixels: features that need neither labels nor a network."""

from pathlib import Path

import torch
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits
from torch import Tensor

from fedddpm_app.config import ConfigError
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.evaluation.extractors.base import Features, extract, features_digest, resize
from fedddpm_app.evaluation.extractors.cache import load_or_create
from fedddpm_app.weights import Weights

VERSION = 1  # increased with every change in this file that affects the features
MAX_FEATURES = 64
_MAX_IMAGES = 20_000  # evenly spread over the training images
_MAX_SIDE = 32  # pixels; larger images are shrunk


class PixelsPca:
    """An ``Extractor`` that projects pixels in [0, 1] onto principal components, without whitening.

    Parameters
    ----------
    weights : Weights
        ``mean``: float32, shape (C, h, w). ``components``: float32, shape (``num_features``, C * h * w).
    device : torch.device
        The device that projects the images.
    """

    name = "pixels-pca"

    def __init__(self, weights: Weights, device: torch.device) -> None:
        self.digest = pixels_pca_digest(weights)
        self.num_features = len(weights["components"])
        self._mean, self._components = weights["mean"].to(device), weights["components"].to(device)
        self.device = device

    def __call__(self, images: Tensor) -> Features:
        """Return the features of ``images`` (uint8, shape (N, C, H, W), C as in training, any N and size)."""
        return extract(self._forward, images, self.device, (self.num_features, 0))

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        height, width = self._mean.shape[-2:]
        centred = (_to_pixels(images, (height, width)) - self._mean).flatten(1)
        return centred @ self._components.T, centred.new_empty(len(images), 0)


def pixels_pca_digest(weights: Weights) -> str:
    """Return the digest of the extractor with these weights."""
    return features_digest(weights, PixelsPca.name, VERSION)


def load_pixels_pca(train: ImageTensors, data_digest: str, cache_dir: Path, device: torch.device) -> PixelsPca:
    """Load the principal components of a data set; the first call computes them.

    Parameters
    ----------
    train : ImageTensors
        The real training images, at least two; labels are not used.
    data_digest : str
        Identifies the data in a file name: other images have another digest.
    cache_dir : Path
        The folder for the components, with one file per data set and version.
    device : torch.device
        The device that projects the images.

    Raises
    ------
    ConfigError
        If there are fewer than two images.
    """
    if len(train) < 2:
        raise ConfigError(
            f'eval-extractor = "pixels-pca" needs at least two training images, but the data set has {len(train)}: '
            'use eval-extractor = "efficientnet-lite0" or more images.'
        )
    shape = "x".join(str(side) for side in train.images.shape[1:])
    path = cache_dir / f"pixels-pca-v{VERSION}-{data_digest}-{shape}.safetensors"
    return PixelsPca(load_or_create(path, lambda: _fit(train.images)), device)


def fit_pixels_pca(images: Tensor, device: torch.device) -> PixelsPca:
    """Compute the principal components of images, uint8 (N, C, H, W), N >= 2, without storing them."""
    return PixelsPca(_fit(images), device)


def _fit(images: Tensor) -> Weights:
    """Compute mean and components on one thread, because their last bits depend on the number of threads.

    The components' signs are those of scikit-learn: the largest of a component's entries is positive.
    """
    spread = torch.linspace(0, len(images) - 1, min(len(images), _MAX_IMAGES), dtype=torch.float64).round().long()
    height, width = (min(side, _MAX_SIDE) for side in images.shape[-2:])
    pixels = _to_pixels(images[spread.to(images.device)].cpu(), (height, width))
    values = pixels.flatten(1).numpy()
    count = min(MAX_FEATURES, values.shape[1], values.shape[0] - 1)
    with threadpool_limits(1):
        pca = PCA(count, svd_solver="covariance_eigh").fit(values)
    mean, components = (torch.from_numpy(array).float().contiguous() for array in (pca.mean_, pca.components_))
    return {"mean": mean.reshape(pixels.shape[1:]), "components": components}


def _to_pixels(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Convert uint8 images to float32 in [0, 1], resized to (height, width)."""
    return resize(images.float().div_(255.0), size)
