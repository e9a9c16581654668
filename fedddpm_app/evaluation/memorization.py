"""Do generated images copy training images? The nearest training images in pixels, and a calibrated threshold."""

from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK_IMAGES = 2048
_BLOCK_BYTES = 128 * 2**20
_TWIN = 1e-4  # ratio: grey levels of different images give far more, features of copies far less


@dataclass(frozen=True)
class Neighbours:
    """The training images nearest to N images.

    Attributes
    ----------
    ratio : Tensor
        float32, shape (N,), in [0, 1]; small for an image that is abnormally close to one training image.
    index : Tensor
        int64, shape (N,); the nearest training image, or the first of several equally near ones.
    distance : Tensor
        float32, shape (N,); its Euclidean distance, of pixels in [0, 1].
    """

    ratio: Tensor
    index: Tensor
    distance: Tensor


def as_trained(train: Tensor, *, mirrored: bool) -> Tensor:
    """Return the images, (M, C, H, W), that a model has seen: with ``mirrored``, also their mirror images after them.

    A model that was trained with ``horizontal-flip`` may copy either.
    """
    return torch.cat([train, train.flip(-1)]) if mirrored else train


def nearest_training(images: Tensor, train: Tensor, k: int = 50) -> Neighbours:
    """Return each image's nearest training image, with its distance relative to the k nearest training images.

    The ratio is the distance to the nearest training image over the mean distance to the k nearest, which include
    the nearest (Carlini et al. 2023, arXiv 2301.13188, sec. 5, without their constant factor alpha, which only
    rescales the threshold). It is 0 if all k are copies of the image.

    Parameters
    ----------
    images, train : Tensor
        uint8, shapes (N, C, H, W) and (M, C, H, W); M >= 1. Computed on the CPU, in blocks of both.
    k : int
        At least 1; at most M are used.

    Raises
    ------
    ValueError
        If a dtype is not uint8, the shapes differ, there is no training image, or ``k`` < 1.
    """
    _check(images, train, k)
    distances, index = _distances(images, train, k)
    return Neighbours(_ratio(distances).float(), index, distances[:, 0].float() / 255)


def nearest_vectors(vectors: Tensor, train: Tensor, k: int = 50) -> Neighbours:
    """Return each vector's nearest training vector, as ``nearest_training`` does for images.

    Parameters
    ----------
    vectors, train : Tensor
        Features, float32, shapes (N, d) and (M, d); M >= 1. The distances are those of the features.
    k : int
        At least 1; at most M are used.

    Raises
    ------
    ValueError
        If the shapes differ, there is no training vector, or ``k`` < 1.
    """
    if vectors.ndim != 2 or vectors.shape[1:] != train.shape[1:] or not len(train) or k < 1:
        raise ValueError(f"vectors are {tuple(vectors.shape)} and {tuple(train.shape)}, with k = {k}")
    distances, index = _distances(vectors, train, k)
    return Neighbours(_ratio(distances).float(), index, distances[:, 0].float())


def among_themselves(train: Tensor, k: int, count: int) -> Tensor:
    """Return the ratios of training images, or of their features, beside the other ones.

    They are those of real images that are not copies, if there are too few held-out ones for a calibration.

    Parameters
    ----------
    train : Tensor
        uint8 images or float32 features, shape (M, ...).
    k : int
        As in ``nearest_training``.
    count : int
        At most so many, evenly spread.

    Returns
    -------
    Tensor
        float32, shape (N,), N <= ``count``; without those that have an exact copy among the others.
    """
    if len(train) < 2:
        return torch.empty(0)
    chosen = torch.linspace(0, len(train) - 1, min(count, len(train))).round().long()
    distances, _ = _distances(train[chosen], train, k + 1)
    others = distances[:, 1:]  # the first is the distance from itself
    return _ratio(others[~_are_twins(others)]).float()


def without_twins(found: Neighbours) -> Tensor:
    """Return the ratios of images that are not themselves training images, float32, shape (M,), M <= N."""
    return found.ratio[found.ratio > _TWIN]


def _are_twins(distances: Tensor) -> Tensor:
    """Return whether an image has an exact copy; features of copies may differ in their last digits."""
    return _ratio(distances) <= _TWIN


def _distances(images: Tensor, train: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k least distances, float64, shape (N, k), rising, and the index of the nearest."""
    size = max(1, min(_BLOCK_IMAGES, _BLOCK_BYTES // (8 * train[0].numel())))
    blocks = [_nearest(block, train, min(k, len(train)), size) for block in torch.split(images, size)]
    squared = torch.cat([nearest for nearest, _ in blocks])
    return squared.clamp(min=0).sqrt(), torch.cat([index for _, index in blocks])


def _ratio(distances: Tensor) -> Tensor:
    """Return the first of rising distances over their mean; 0 if all are 0."""
    mean = distances.mean(1)
    return torch.where(mean > 0, distances[:, 0] / mean, 0.0)


def _check(images: Tensor, train: Tensor, k: int) -> None:
    if images.dtype != torch.uint8 or train.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype} and {train.dtype} instead of uint8")
    if images.ndim != 4 or images.shape[1:] != train.shape[1:]:
        raise ValueError(f"images are {tuple(images.shape)} and {tuple(train.shape)}, not of the same (C, H, W)")
    if not len(train) or k < 1:
        raise ValueError(f"{len(train)} training images and k = {k}, but both must be at least 1")


def _nearest(images: Tensor, train: Tensor, k: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the k least squared distances, float64, shape (N, k), rising, and the first's index.

    Grey levels are whole numbers: ``|x|^2 - 2 x.y + |y|^2`` is therefore exact in float64, even for near copies.
    Features are not; two equal vectors may have a distance of about 1e-8 of their norm.
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
    """Return the largest ratio for which at most a share ``rate`` of the ratios lies strictly below it.

    Parameters
    ----------
    ratios : Tensor
        The ratios of held-out images, which are not copies; shape (N,), N >= 1.
    rate : float
        In [0, 1]; the accepted share of images that are wrongly counted as memorised.

    Raises
    ------
    ValueError
        If there are no ratios or the rate is outside [0, 1].
    """
    if not len(ratios) or not 0 <= rate <= 1:
        raise ValueError(f"{len(ratios)} ratios and a rate of {rate}; at least 1 and a rate in [0, 1] are needed")
    below = torch.arange(len(ratios), dtype=torch.float64) / len(ratios)
    return float(ratios.sort().values[below <= rate][-1])


def memorized_share(ratios: Tensor, threshold: float) -> float:
    """Return the share of ``ratios``, shape (N,), strictly below ``threshold``; NaN if there are none."""
    return float((ratios.double() < threshold).double().mean())
