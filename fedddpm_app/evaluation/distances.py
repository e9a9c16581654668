"""Distances between generated and real images: by features, by a classifier's logits, and by label counts.

All distances are computed on the CPU in float64, whatever device and dtype the features have.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedddpm_app.seeding import derive_seed

MAX_SUBSET = 1000
_CHUNK_SIZE = 4096


class Spread(NamedTuple):
    """A metric on several random parts of the images: ``value`` is the mean over the parts, ``std`` the deviation."""

    value: float
    std: float


def comparable_features(generated: Tensor, real: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Return both sets of features in float64 on the CPU.

    Parameters
    ----------
    generated, real : Tensor
        Floating point, shapes (N, d) and (M, d), finite.
    least : int
        The number of images that each set needs.

    Raises
    ------
    ValueError
        If the shapes differ from these, there are fewer images, or values are not finite.
    """
    if generated.ndim != 2 or real.ndim != 2 or generated.shape[1] != real.shape[1]:
        raise ValueError(f"features are {tuple(generated.shape)} and {tuple(real.shape)}, not (N, d) and (M, d)")
    if min(len(generated), len(real)) < least:
        raise ValueError(f"{len(generated)} generated and {len(real)} real images, but {least} of each are needed")
    both = tuple(features.detach().to("cpu", torch.float64) for features in (generated, real))
    if not all(bool(torch.isfinite(features).all()) for features in both):
        raise ValueError("features hold NaN or infinity")
    return both[0], both[1]


def frechet_distance(generated: Tensor, real: Tensor) -> float:
    """Return the squared Frechet distance of two Gaussians with the sets' means and unbiased covariances.

    ``|mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))`` (Heusel et al. 2017, eq. 6). With ``S = R^T R``,
    the trace of the root is the nuclear norm of ``R_1 R_2^T``. Unlike the eigenvalues of ``S_1 S_2``, which
    torchmetrics uses, this loses no digits if a covariance is singular (fewer images than features).

    Parameters
    ----------
    generated, real : Tensor
        Features, floating point, shapes (N, d) and (M, d); N, M >= 2. The estimate is biased upwards, and
        more strongly for fewer images: compare only values of equal N and M.

    Returns
    -------
    float
        >= 0; a value that is negative by rounding becomes 0.0.

    Raises
    ------
    ValueError
        As ``comparable_features``.
    """
    generated, real = comparable_features(generated, real, least=2)
    root_1, root_2 = _covariance_root(generated), _covariance_root(real)
    means = (generated.mean(0) - real.mean(0)).square().sum()
    traces = root_1.square().sum() + root_2.square().sum()
    return max(float(means + traces - 2 * torch.linalg.svdvals(root_1 @ root_2.T).sum()), 0.0)


def _covariance_root(features: Tensor) -> Tensor:
    """Return R, shape (min(N, d), d), with ``R^T R`` the unbiased covariance, by QR decompositions of chunks."""
    mean = features.mean(0)
    root = features[:0]
    for chunk in torch.split(features, _CHUNK_SIZE):
        root = torch.linalg.qr(torch.cat([root, chunk - mean]), mode="r")[1]
    return root.div_((len(features) - 1) ** 0.5)


def kernel_distance(
    generated: Tensor, real: Tensor, seed: int, subsets: int = 100, max_subset: int = MAX_SUBSET
) -> Spread:
    """Return the kernel distance, the unbiased squared MMD with ``k(x, y) = (x.y / d + 1)^3``.

    Binkowski et al. 2018, sec. 4 and eq. 4, computed by torchmetrics: the mean over random subsets of both sets, each
    sampled without replacement. The size of a subset is half of the smaller set, at most ``max_subset`` images; if
    it were the whole set, all subsets would be the same and ``std`` would have no meaning.

    Parameters
    ----------
    generated, real : Tensor
        Features, floating point, shapes (N, d) and (M, d); N, M >= 4.
    seed : int
        In [0, 2**32); determines the subsets. The global random state does not change.
    subsets, max_subset : int
        At least 1 and 2.

    Returns
    -------
    Spread
        0 on average for equal distributions, so a value can be below 0. ``std`` is over the subsets, which overlap: it
        is not the standard error of ``value``.

    Raises
    ------
    ValueError
        As ``comparable_features``, or for ``max_subset`` < 2.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    generated, real = comparable_features(generated, real, least=4)
    if max_subset < 2:
        raise ValueError(f"max_subset is {max_subset}, but the unbiased estimate needs 2 images")
    size = subset_size(len(generated), len(real), max_subset)
    with _seeded(derive_seed(seed, "kernel-distance")):
        metric = KernelInceptionDistance(nn.Identity(), subsets=subsets, subset_size=size)
        metric.update(real, real=True)
        metric.update(generated, real=False)
        value, std = metric.compute()
    return Spread(float(value), float(std))


def subset_size(n: int, m: int, max_subset: int = MAX_SUBSET) -> int:
    """Return the number of images in a subset of the kernel distance, for ``n`` and ``m`` images."""
    return min(max_subset, min(n, m) // 2)


def inception_score(logits: Tensor, seed: int, splits: int = 10) -> Spread:
    """Return ``exp(E_x KL(p(y|x) || p(y)))`` of a classifier's logits (Salimans et al. 2016), by torchmetrics.

    Parameters
    ----------
    logits : Tensor
        Floating point, shape (N, K), N >= ``splits``.
    seed : int
        In [0, 2**32); determines the split. The global random state does not change.
    splits : int
        Number of parts, at least 2; ``p(y)`` is the mean over a part. ``torch.chunk`` makes fewer parts if N is barely
        enough.

    Returns
    -------
    Spread
        In [1, K]; ``std`` is over the parts.

    Raises
    ------
    ValueError
        If the shape differs from this, or there are fewer logits or splits.
    """
    from torchmetrics.image.inception import InceptionScore

    if logits.ndim != 2 or not 2 <= splits <= len(logits):
        raise ValueError(f"logits are {tuple(logits.shape)}, for {splits} splits; 2 <= splits <= N is needed")
    with _seeded(derive_seed(seed, "inception-score")):
        metric = InceptionScore(nn.Identity(), splits=splits)
        metric.update(logits.detach().to("cpu", torch.float64))
        value, std = metric.compute()
    return Spread(float(value), float(std))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the CPU generator that torchmetrics uses, and restore it; silence its warning about memory."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features", category=UserWarning)
        torch.default_generator.manual_seed(seed)
        yield


def total_variation(counts: Tensor, reference_counts: Tensor) -> float:
    """Return half the L1 distance between two histograms, each normalised to the sum 1.

    Parameters
    ----------
    counts, reference_counts : Tensor
        Of equal shape (K,), >= 0, not all 0.

    Returns
    -------
    float
        In [0, 1].

    Raises
    ------
    ValueError
        If the shapes differ or a histogram is empty.
    """
    if counts.shape != reference_counts.shape:
        raise ValueError(f"histograms of {tuple(counts.shape)} and {tuple(reference_counts.shape)} bins")
    totals = float(counts.sum()), float(reference_counts.sum())
    if not all(totals):
        raise ValueError(f"the histograms count {totals[0]:g} and {totals[1]:g} images")
    return float((counts.double() / totals[0] - reference_counts.double() / totals[1]).abs().sum()) / 2
