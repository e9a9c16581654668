"""Whether generated images copy training images: the nearest ones in pixels, and a calibrated threshold."""

from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK_IMAGES = 2048
_BLOCK_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Neighbours:
    """The training images nearest to N images.

    Attributes
    ----------
    ratio : Tensor
        float32, shape (N,), in [0, 1]; small for an image abnormally close to one training image.
    index : Tensor
        int64, shape (N,); the nearest training image, the first of equally near ones.
    distance : Tensor
        float32, shape (N,); its Euclidean distance, of pixels in [0, 1].
    """

    ratio: Tensor
    index: Tensor
    distance: Tensor


def nearest_training(images: Tensor, train: Tensor, k: int = 50) -> Neighbours:
    """Return each image's nearest training image and how much nearer it is than the k nearest are.

    The ratio is the distance to the nearest training image over the mean distance to the k nearest, itself
    among them (Carlini et al. 2023, arXiv 2301.13188, sec. 5, without their constant factor alpha, which only
    rescales the threshold). Where all k are copies of the image it is 0.

    Parameters
    ----------
    images, train : Tensor
        uint8, shapes (N, C, H, W) and (M, C, H, W); M >= 1. Computed on the CPU, a block of either at a time.
    k : int
        At least 1; at most M are used.

    Raises
    ------
    ValueError
        For another dtype, unlike shapes, no training image or ``k`` < 1.
    """
    _check(images, train, k)
    size = max(1, min(_BLOCK_IMAGES, _BLOCK_BYTES // (8 * train[0].numel())))
    blocks = [_nearest(block, train, min(k, len(train)), size) for block in torch.split(images, size)]
    squared = torch.cat([nearest for nearest, _ in blocks])
    distances = squared.sqrt() / 255
    mean = distances.mean(1)
    ratio = torch.where(mean > 0, distances[:, 0] / mean, 0.0)
    return Neighbours(ratio.float(), torch.cat([index for _, index in blocks]), distances[:, 0].float())


def _check(images: Tensor, train: Tensor, k: int) -> None:
    if images.dtype != torch.uint8 or train.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype} and {train.dtype} instead of uint8")
    if images.ndim != 4 or images.shape[1:] != train.shape[1:]:
        raise ValueError(f"images are {tuple(images.shape)} and {tuple(train.shape)}, not of one (C, H, W)")
    if not len(train) or k < 1:
        raise ValueError(f"{len(train)} training images and k = {k}, but both must be at least 1")


def _nearest(images: Tensor, train: Tensor, k: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the k least squared distances in grey levels, float64, shape (N, k), rising, and the first's index.

    Grey levels are whole numbers, so that ``|x|^2 - 2 x.y + |y|^2`` is exact in float64, near copies included.
    """
    x = images.cpu().flatten(1).double()
    squared = torch.empty(len(x), 0, dtype=torch.float64)
    index = torch.zeros(len(x), dtype=torch.int64)
    least = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for start in range(0, len(train), size):
        y = train[start : start + size].cpu().flatten(1).double()
        block = torch.addmm(x.square().sum(1, keepdim=True) + y.square().sum(1), x, y.T, alpha=-2)
        block_least, place = block.min(1)
        index = torch.where(block_least < least, start + place, index)
        least = torch.minimum(least, block_least)
        squared = torch.cat([squared, block], 1)
        squared = squared.topk(min(k, squared.shape[1]), largest=False).values
    return squared, index


def threshold_at(ratios: Tensor, rate: float) -> float:
    """Return the largest of the ratios that at most a share ``rate`` of them lies strictly below.

    Parameters
    ----------
    ratios : Tensor
        Of held-out images, which are no copies; shape (N,), N >= 1.
    rate : float
        In [0, 1]; the share of images falsely called memorised that is accepted.

    Raises
    ------
    ValueError
        For no ratios or a rate outside [0, 1].
    """
    if not len(ratios) or not 0 <= rate <= 1:
        raise ValueError(f"{len(ratios)} ratios and a rate of {rate}; at least 1 and a rate in [0, 1] are needed")
    below = torch.arange(len(ratios), dtype=torch.float64) / len(ratios)
    return float(ratios.sort().values[below <= rate][-1])


def memorized_share(ratios: Tensor, threshold: float) -> float:
    """Return the share of ``ratios``, shape (N,), strictly below ``threshold``; NaN when there are none."""
    return float((ratios.double() < threshold).double().mean())
