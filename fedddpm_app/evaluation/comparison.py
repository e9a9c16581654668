"""All metrics of two sets of features; the extractor determines the names of the metrics.

A new metric is a function, here or in its own file, and a line in ``METRICS``.
"""

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
    """A metric's value, its own deviation (NaN if it has none), and the number of real images that it used."""

    value: float
    std: float
    reference_n: int


class Pair(NamedTuple):
    """Generated images and real ones, as features.

    ``generated``: vectors (N, d), and logits if the extractor classifies. ``real``: vectors (M, d). ``paired``:
    min(N, M) of the real vectors, evenly spread. ``seed``: in [0, 2**32), for random parts.
    """

    generated: Features
    real: Tensor
    paired: Tensor
    seed: int


def _frechet(pair: Pair) -> Mapping[str, Measured]:
    distance = frechet_distance(pair.generated.vectors, pair.real)
    return {"fd": Measured(distance, torch.nan, len(pair.real))}


def _kernel(pair: Pair) -> Mapping[str, Measured]:
    return {"kd": _spread(kernel_distance(pair.generated.vectors, pair.real, pair.seed), pair)}


def _score(pair: Pair) -> Mapping[str, Measured]:
    if pair.generated.logits is None:
        return {}
    return {"score": _spread(inception_score(pair.generated.logits, pair.seed), pair)}


def _manifold(pair: Pair) -> Mapping[str, Measured]:
    """Compare as many real images as there are generated ones: these metrics depend on the ratio."""
    values = precision_recall_density_coverage(pair.generated.vectors, pair.paired, NEIGHBOURS)
    return {name: Measured(values[name], torch.nan, len(pair.paired)) for name in _MANIFOLD}


# Names, and the function that returns all of these metrics; it raises ValueError if there are too few images.
METRICS: Mapping[tuple[str, ...], Callable[[Pair], Mapping[str, Measured]]] = {
    ("fd",): _frechet,
    ("kd",): _kernel,
    ("score",): _score,
    _MANIFOLD: _manifold,
}


def compare(generated: Features, real: Tensor, seed: int) -> dict[str, Measured]:
    """Return every metric of two sets of features; a metric that needs more images is NaN.

    Parameters
    ----------
    generated : Features
        Vectors (N, d), and logits if the extractor classifies.
    real : Tensor
        Vectors (M, d).
    seed : int
        In [0, 2**32); determines the kernel distance's subsets and the score's parts.

    Returns
    -------
    dict of str to Measured
        By the names of ``METRICS``; ``score`` only with logits.
    """
    pair = Pair(generated, real, spread(real, len(generated.vectors)), seed)
    found: dict[str, Measured] = {}
    for names, metric in METRICS.items():
        try:
            found |= metric(pair)
        except ValueError:  # too few images, or features that are not finite
            count = len(pair.paired) if names == _MANIFOLD else len(real)
            found |= dict.fromkeys(names, Measured(torch.nan, torch.nan, count))
    return found


def compare_classes(logits: Tensor, labels: Tensor) -> Measured:
    """Return the total variation distance between the classifier's labels of images and the real labels."""
    generated, real = class_counts(logits, labels)
    return Measured(total_variation(generated, real), torch.nan, len(labels))


def class_counts(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of images per class, by a classifier and of the real images, both int64 (classes,)."""
    classes = max(logits.shape[1], int(labels.max()) + 1)
    return logits.argmax(1).bincount(minlength=classes), labels.bincount(minlength=classes)


def name_of(metric: str, extractor: Extractor) -> str:
    """Return a metric's name for its features: names such as ``fid`` only for the standard Inception-v3."""
    if isinstance(extractor, InceptionV3) and extractor.standard:
        return _OF_INCEPTION.get(metric, f"{metric}-{extractor.name}")
    return f"{metric}-{extractor.name}"


def spread(values: Tensor, count: int) -> Tensor:
    """Return ``count`` evenly spread rows, or all rows if there are fewer."""
    if count >= len(values):
        return values
    return values[torch.linspace(0, len(values) - 1, count, dtype=torch.float64).round().long()]


def _spread(value: Spread, pair: Pair) -> Measured:
    return Measured(value.value, value.std, len(pair.real))
