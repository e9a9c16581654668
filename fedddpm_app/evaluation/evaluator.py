"""Computes metrics from a stream of generated images; only the memory for their features grows with their number."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from fedddpm_app.evaluation.comparison import Measured, class_counts, compare, compare_classes, name_of, spread
from fedddpm_app.evaluation.copies import CopyDetector, Pairs
from fedddpm_app.evaluation.distances import subset_size
from fedddpm_app.evaluation.extractors import Extractor, Features
from fedddpm_app.evaluation.metrics import CAVEAT, OF_THE_FLOOR, Metric, SamplingInfo
from fedddpm_app.evaluation.noise import PixelCorrelation, noise_note
from fedddpm_app.evaluation.reference import CLASSES, REFERENCE_SEED, Floor, Reference

_KERNEL = "kd"
_CHUNK = 2048  # images that are processed together


@dataclass(frozen=True)
class Evaluation:
    """The results of one model's evaluation.

    Attributes
    ----------
    metrics : list of Metric
        The same metrics for every model, with the same data and extractor.
    classes : Metric or None
        The metric ``class-tv``, with ``class_counts``: ``generated``, by the classifier, and ``real``, by label. None
        without labels.
    pairs : Pairs or None
        The images closest to training images; None if the search was off.
    noise : str
        The caveat that the images are still noise, which is part of every metric's note; empty if they are not.
    """

    metrics: list[Metric]
    classes: Metric | None
    pairs: Pairs | None
    noise: str


class Evaluator:
    """Compares generated images with real ones.

    Parameters
    ----------
    reference : Reference
        The real images, and the extractors.
    make_detector : callable
        Creates the detector of copies of training images; called on first use.
    """

    def __init__(self, reference: Reference, make_detector: Callable[[], CopyDetector]) -> None:
        self.reference = reference
        self._make_detector = make_detector

    @cached_property
    def detector(self) -> CopyDetector:
        """The detector of copies of training images."""
        return self._make_detector()

    def measure(self, batches: Iterable[Tensor], sampling: SamplingInfo, *, find_copies: bool = True) -> Evaluation:
        """Compute the metrics of images.

        Parameters
        ----------
        batches : iterable of Tensor
            uint8, shape (B, C, H, W) each; at least one image in total. No image is kept.
        sampling : SamplingInfo
            The settings by which the images were generated.
        find_copies : bool
            Whether to compare the images with training images, too; this comparison takes the longest time.
        """
        search = self.detector.start() if find_copies else None
        pixels = PixelCorrelation()
        vectors, logits, labels = [], [], []
        for images in _regroup(batches, _CHUNK):
            features = self.reference.extractor(images)
            vectors.append(features.vectors)
            logits += [] if features.logits is None else [features.logits]
            predicted = self.reference.labels_of(images, features)
            labels += [] if predicted is None else [predicted]
            pixels.add(images)
            if search is not None:
                search.add(images)
        generated = Features(torch.cat(vectors), torch.cat(logits) if logits else None)
        metrics = self._compare(generated, torch.cat(labels) if labels else None, sampling)
        if search is not None:
            metrics.append(search.metric("train", sampling))
        noise = noise_note(pixels, self._real_pixels)
        metrics = [replace(metric, note=CAVEAT.join(filter(None, (metric.note, noise)))) for metric in metrics]
        classes = next((metric for metric in metrics if metric.name == CLASSES), None)
        return Evaluation(metrics, classes, search.pairs if search else None, noise)

    @cached_property
    def _real_pixels(self) -> PixelCorrelation:
        pixels = PixelCorrelation()
        pixels.add(spread(self.reference.images.images, _CHUNK))
        return pixels

    def _compare(self, generated: Features, predicted: Tensor | None, sampling: SamplingInfo) -> list[Metric]:
        reference, extractor = self.reference, self.reference.extractor
        n, real = len(generated.vectors), reference.images.labels
        found = compare(generated, reference.vectors, REFERENCE_SEED)
        labelled = reference.classifier is not None and predicted is not None and real is not None
        floor = reference.floor(n, [*found, *([CLASSES] if labelled else [])])
        metrics = [self._metric(name, measured, floor, n, extractor, sampling) for name, measured in found.items()]
        if reference.classifier is None or predicted is None or real is None:
            return metrics
        measured = compare_classes(predicted, real)
        classes = self._metric(CLASSES, measured, floor, n, reference.classifier, sampling)
        generated_counts, real_counts = class_counts(predicted, real)
        counts = {"generated": generated_counts.tolist(), "real": real_counts.tolist()}
        return [*metrics, replace(classes, details={"class_counts": counts})]

    def _metric(
        self,
        key: str,
        measured: Measured,
        floor: Floor,
        n: int,
        extractor: Extractor,
        sampling: SamplingInfo,
    ) -> Metric:
        name = key if key == CLASSES else name_of(key, extractor)
        floor_measured = floor.measures[key]
        return Metric(
            name=name,
            value=measured.value,
            std=_or_none(measured.std),
            n=n,
            reference=self.reference.split,
            reference_n=measured.reference_n,
            reference_digest=self.reference.digest,
            extractor=extractor.name,
            extractor_digest=extractor.digest,
            sampling=sampling,
            floor=floor_measured.value,
            floor_std=_or_none(floor_measured.std),
            floor_n=floor.n,
            floor_reference_n=floor_measured.reference_n,
            note=_note(name, measured, n, extractor, floor, floor_measured.reference_n),
            details={"subset_size": subset_size(n, measured.reference_n)} if key == _KERNEL else {},
        )


def _note(name: str, measured: Measured, n: int, extractor: Extractor, floor: Floor, floor_reference_n: int) -> str:
    """Return the caveats about a metric, or an empty text."""
    if math.isnan(measured.value):
        return f"not defined for {n} generated and {measured.reference_n} real images"
    notes = []
    least = min(n, measured.reference_n)
    if (name == "fid" or name.startswith("fd-")) and least < extractor.num_features:
        notes.append(f"{least} images are fewer than the {extractor.num_features} feature dimensions: mostly bias")
    if floor.n < n or floor_reference_n < measured.reference_n:
        notes.append(f"{OF_THE_FLOOR} {floor.n} images with {floor_reference_n}: the data have no more")
    return CAVEAT.join(notes)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _regroup(batches: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Yield the same images in groups of at least ``size``; the last group holds the rest."""
    group: list[Tensor] = []
    for batch in batches:
        group.append(batch)
        if sum(map(len, group)) >= size:
            yield torch.cat(group)
            group = []
    if group:
        yield torch.cat(group)
