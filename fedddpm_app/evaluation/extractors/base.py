"""The protocol of extractors, and their common functions: batches, channels, sizes, digests."""

import hashlib
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from fedddpm_app.weights import Weights

BATCH_SIZE = 256


class Features(NamedTuple):
    """A network's features of N images.

    ``vectors``: float32, shape (N, ``num_features``), on the CPU. ``logits``: float32, shape (N, classes),
    on the CPU, or None for an extractor that does not classify.
    """

    vectors: Tensor
    logits: Tensor | None

    def select(self, rows: Tensor) -> "Features":
        """Return the features of ``rows``, int64 (M,)."""
        return Features(self.vectors[rows], None if self.logits is None else self.logits[rows])


class Extractor(Protocol):
    """Maps images to the vectors that distances between image distributions are computed on.

    Attributes
    ----------
    name : str
        The value of ``eval-extractor``.
    digest : str
        The first 16 hex digits of a SHA-256 of all that determines the features: metrics are comparable only if
        their digest is the same.
    num_features : int
        Length of a feature vector.
    device : torch.device
        The device that the extractor runs on.
    """

    name: str
    digest: str
    num_features: int
    device: torch.device

    def __call__(self, images: Tensor) -> Features:
        """Return the features of ``images`` (uint8, shape (N, C, H, W), C 1 or 3, any N and size)."""
        ...


@torch.no_grad()
def extract(
    forward: Callable[[Tensor], tuple[Tensor, Tensor]],
    images: Tensor,
    device: torch.device,
    widths: tuple[int, int],
    batch_size: int = BATCH_SIZE,
) -> Features:
    """Run a network on images in batches, so that its memory does not grow with their number.

    Parameters
    ----------
    forward : callable
        Maps uint8 images, shape (B, C, H, W), on ``device`` to vectors (B, d) and logits (B, classes).
    images : Tensor
        uint8, shape (N, C, H, W), on any device; N may be 0.
    device : torch.device
        The device that ``forward`` runs on.
    widths : tuple of int
        d and classes.
    batch_size : int
        Images per batch.

    Returns
    -------
    Features
        Logits are None if there are 0 classes.

    Raises
    ------
    ValueError
        If ``images`` has another dtype or shape.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(
            f"images are {images.dtype} of shape {tuple(images.shape)} instead of uint8 (N, 1 or 3, H, W): "
            "diffusion.images.to_uint8 makes them"
        )
    vectors, logits = (torch.empty(len(images), width) for width in widths)
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        vectors[rows], logits[rows] = forward(images[rows].to(device))
    return Features(vectors, logits if widths[1] else None)


def to_rgb(images: Tensor) -> Tensor:
    """Repeat the channel of grey images, shape (N, 1, H, W), three times; RGB is returned unchanged."""
    return images.expand(-1, 3, -1, -1)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize float images, shape (N, C, H, W), to (height, width), bilinear and without aliasing."""
    if tuple(images.shape[-2:]) == size:
        return images
    return functional.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)


def features_digest(weights: Weights, *settings: object) -> str:
    """Return the first 16 hex digits of a SHA-256 of weights and of other settings that determine the features."""
    sha256 = hashlib.sha256(repr(settings).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha256.update(tensor.numpy().tobytes())
    return sha256.hexdigest()[:16]
