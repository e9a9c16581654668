"""All measures of two sets of features, under the names that their extractor gives them."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fedddpm_app.evaluation.distances import Spread, frechet_distance, inception_score, kernel_distance, total_variation
from fedddpm_app.evaluation.extractors import Extractor, Features, InceptionV3
from fedddpm_app.evaluation.manifolds import precision_recall_density_coverage

NEIGHBOURS = 5  # k of precision, recall, density and coverage, as in Naeem et al. 2020
_MANIFOLD = ("precision", "recall", "density", "coverage")
_OF_INCEPTION = {"fd": "fid", "kd": "kid", "score": "inception-score"}


class Measured(NamedTuple):
    """A measure's value, its own deviation (NaN: it has none), and how many real images it took."""

    value: float
    std: float
    reference_n: int


def compare(generated: Features, real: Tensor, seed: int) -> dict[str, Measured]:
    """Return every measure of two sets of features; one that cannot be taken of so few images is NaN.

    Parameters
    ----------
    generated : Features
        Vectors (N, d); logits, where the extractor classifies.
    real : Tensor
        Vectors (M, d).
    seed : int
        In [0, 2**32); of the kernel distance's subsets and the score's parts.

    Returns
    -------
    dict of str to Measured
        ``fd``, ``kd``, ``precision``, ``recall``, ``density``, ``coverage`` and, with logits, ``score``. The four in
        the middle compare N images with min(N, M) real ones, evenly spread: they depend on the ratio.
    """
    vectors, paired = generated.vectors, spread(real, len(generated.vectors))
    found = {
        "fd": _measured(lambda: frechet_distance(vectors, real), len(real)),
        "kd": _measured(lambda: kernel_distance(vectors, real, seed), len(real)),
    }
    if generated.logits is not None:
        logits = generated.logits
        found["score"] = _measured(lambda: inception_score(logits, seed), len(real))
    try:
        manifold: Mapping[str, float] = precision_recall_density_coverage(vectors, paired, NEIGHBOURS)
    except ValueError:
        manifold = dict.fromkeys(_MANIFOLD, torch.nan)
    return found | {name: Measured(manifold[name], torch.nan, len(paired)) for name in _MANIFOLD}


def compare_classes(logits: Tensor, labels: Tensor) -> Measured:
    """Return the total variation distance between the classifier's labels of images and the real labels."""
    generated, real = class_counts(logits, labels)
    return Measured(total_variation(generated, real), torch.nan, len(labels))


def class_counts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the images that a classifier puts in each class, and the real ones per class, int64 (classes,) both."""
    classes = max(logits.shape[1], int(labels.max()) + 1)
    return logits.argmax(1).bincount(minlength=classes), labels.bincount(minlength=classes)


def name_of(measure: str, extractor: Extractor) -> str:
    """Return a measure's name by its features: ``fid`` and the like only of the standard Inception-v3."""
    if isinstance(extractor, InceptionV3) and extractor.standard:
        return _OF_INCEPTION.get(measure, f"{measure}-{extractor.name}")
    return f"{measure}-{extractor.name}"


def spread(values: Tensor, count: int) -> Tensor:
    """Return ``count`` rows, or all if there are fewer, evenly spread."""
    if count >= len(values):
        return values
    return values[torch.linspace(0, len(values) - 1, count, dtype=torch.float64).round().long()]


def _measured(measure: Callable[[], float | Spread], reference_n: int) -> Measured:
    try:
        value = measure()
    except ValueError:  # too few images, or features that are not finite
        return Measured(torch.nan, torch.nan, reference_n)
    return Measured(*value, reference_n) if isinstance(value, Spread) else Measured(value, torch.nan, reference_n)
