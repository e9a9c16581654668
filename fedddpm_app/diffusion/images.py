"""Images as tensors: stored as uint8, given to a model as float32 in [-1, 1], always NCHW."""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class ImageBatch(NamedTuple):
    """A batch of images for a model.

    ``images``: float32 in [-1, 1], shape (B, C, H, W). ``labels``: int64, shape (B,), or None for an
    unconditional model.
    """

    images: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class ImageTensors:
    """A data set held on one device.

    Attributes
    ----------
    images : Tensor
        uint8, shape (N, C, H, W).
    labels : Tensor or None
        int64, shape (N,); None if the data have no labels.
    """

    images: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        """The device that holds the images."""
        return self.images.device

    def batch(self, index: Tensor) -> ImageBatch:
        """Return the images at ``index`` (int64, shape (B,)) as a batch, on the same device."""
        labels = None if self.labels is None else self.labels[index]
        return ImageBatch(to_unit_range(self.images[index]), labels)

    def select(self, index: Tensor) -> "ImageTensors":
        """Return the subset at ``index`` (int64, shape (M,))."""
        return ImageTensors(self.images[index], None if self.labels is None else self.labels[index])

    def to(self, device: torch.device) -> "ImageTensors":
        """Return the same data on ``device``."""
        return ImageTensors(self.images.to(device), None if self.labels is None else self.labels.to(device))

    def digest(self) -> str:
        """Return the SHA-256 of the pixels and labels."""
        found = hashlib.sha256(self.images.contiguous().cpu().numpy().data)
        if self.labels is not None:
            found.update(self.labels.contiguous().cpu().numpy().data)
        return found.hexdigest()

    def without_labels(self) -> "ImageTensors":
        """Return the images without labels, for an unconditional model."""
        return ImageTensors(self.images)


def concatenate(parts: list[ImageTensors]) -> ImageTensors:
    """Concatenate data sets in order; keep labels only if every part has them."""
    labels = [part.labels for part in parts if part.labels is not None]
    return ImageTensors(
        torch.cat([part.images for part in parts]), torch.cat(labels) if len(labels) == len(parts) else None
    )


def to_unit_range(images: Tensor) -> Tensor:
    """Map uint8 in [0, 255] to float32 in [-1, 1]."""
    return images.to(torch.float32).div_(127.5).sub_(1.0)


class DivergedError(ArithmeticError):
    """A model generated images that are not finite, or are constant."""


def check_varied(images: Tensor) -> None:
    """Raise ``DivergedError`` if every image, uint8 (N, C, H, W), has one value per channel: such a set holds nothing.

    One constant image among others is possible, and accepted.
    """
    pixels = images.flatten(2)
    if (pixels.amin(2) == pixels.amax(2)).all():
        raise DivergedError(f"{len(images)} of {len(images)} generated images are constant: the model is not usable")


def to_uint8(images: Tensor) -> Tensor:
    """Map float in [-1, 1] to uint8 in [0, 255]; values outside are clipped.

    Raises
    ------
    DivergedError
        For NaN, which no grey level can represent.
    """
    if images.isnan().any():
        num_nan = int(images.isnan().flatten(1).any(1).sum())
        raise DivergedError(f"{num_nan} of {len(images)} generated images hold NaN: the model's training diverged")
    return images.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
