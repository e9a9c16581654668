"""From a stream of generated images to figures, in memory that grows with their features only."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedddpm_app.evaluation.comparison import Measured, class_counts, compare, compare_classes, name_of
from fedddpm_app.evaluation.copies import CopyDetector, Pairs
from fedddpm_app.evaluation.extractors import Extractor, Features
from fedddpm_app.evaluation.figures import Drawing, Figure
from fedddpm_app.evaluation.reference import CLASSES, REFERENCE_SEED, Floor, Reference

_CHUNK = 2048  # images that are looked at together


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one model.

    Attributes
    ----------
    figures : list of Figure
        Always the same ones for the same data and extractor.
    class_counts : dict of str to list of int
        ``generated`` and ``real``: images per class by the classifier, and by label; empty without labels.
    pairs : Pairs or None
        The images closest to training images; None where this was not looked for.
    """

    figures: list[Figure]
    class_counts: dict[str, list[int]]
    pairs: Pairs | None


class Evaluator:
    """Measures generated images against real ones.

    Parameters
    ----------
    reference : Reference
        The real images, and what to compare on.
    detector : CopyDetector
        Looks for copies of training images, where asked to.
    """

    def __init__(self, reference: Reference, detector: CopyDetector) -> None:
        self.reference = reference
        self.detector = detector

    def measure(self, batches: Iterable[Tensor], drawing: Drawing, *, find_copies: bool = True) -> Evaluation:
        """Measure images.

        Parameters
        ----------
        batches : iterable of Tensor
            uint8, shape (B, C, H, W) each; at least one image in all. None is kept.
        drawing : Drawing
            How they were drawn.
        find_copies : bool
            Compare them with training images, too, which takes the longest.
        """
        search = self.detector.start() if find_copies else None
        vectors, logits, labels = [], [], []
        for images in _regroup(batches, _CHUNK):
            features = self.reference.extractor(images)
            vectors.append(features.vectors)
            logits += [] if features.logits is None else [features.logits]
            predicted = self.reference.labels_of(images, features)
            labels += [] if predicted is None else [predicted]
            if search is not None:
                search.add(images)
        generated = Features(torch.cat(vectors), torch.cat(logits) if logits else None)
        figures, counts = self._compare(generated, torch.cat(labels) if labels else None, drawing)
        if search is not None:
            figures.append(search.figure("train", drawing))
        return Evaluation(figures, counts, search.pairs if search else None)

    def _compare(
        self, generated: Features, predicted: Tensor | None, drawing: Drawing
    ) -> tuple[list[Figure], dict[str, list[int]]]:
        reference, extractor = self.reference, self.reference.extractor
        n = len(generated.vectors)
        floor = reference.floor(n)
        figures = [
            self._figure(name_of(name, extractor), measured, floor.measures[name], n, extractor, floor, drawing)
            for name, measured in compare(generated, reference.features(), REFERENCE_SEED).items()
        ]
        classifier, real = reference.classifier, reference.images.labels
        if classifier is None or predicted is None or real is None:
            return figures, {}
        measured = compare_classes(predicted, real)
        classes = self._figure(CLASSES, measured, floor.measures[CLASSES], n, classifier, floor, drawing)
        found, wanted = class_counts(predicted, real)
        counts = {"generated": found.tolist(), "real": wanted.tolist()}
        return [*figures, replace(classes, details={"class_counts": counts})], counts

    def _figure(
        self,
        name: str,
        measured: Measured,
        floor_measured: Measured,
        n: int,
        extractor: Extractor,
        floor: Floor,
        drawing: Drawing,
    ) -> Figure:
        return Figure(
            name=name,
            value=measured.value,
            std=None if measured.std != measured.std else measured.std,
            n=n,
            reference=self.reference.split,
            reference_n=measured.reference_n,
            reference_digest=self.reference.digest,
            extractor=extractor.name,
            extractor_digest=extractor.digest,
            drawing=drawing,
            floor=floor_measured.value,
            floor_n=floor.n,
            floor_reference_n=floor_measured.reference_n,
            note=_note(name, measured, n, extractor, floor),
        )


def _note(name: str, measured: Measured, n: int, extractor: Extractor, floor: Floor) -> str:
    """Return what to keep in mind with a figure."""
    if measured.value != measured.value:
        return f"cannot be told of {n} generated and {measured.reference_n} real images"
    notes = []
    least = min(n, measured.reference_n)
    if (name == "fid" or name.startswith("fd-")) and least < extractor.num_features:
        notes.append(f"{least} images are fewer than the {extractor.num_features} feature dimensions: mostly bias")
    if floor.n < n:
        notes.append(f"the floor is of {floor.n} images: the data have no more")
    return "; ".join(notes)


def _regroup(batches: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Yield the same images in groups of at least ``size``, the last one of what is left."""
    group: list[Tensor] = []
    for batch in batches:
        group.append(batch)
        if sum(map(len, group)) >= size:
            yield torch.cat(group)
            group = []
    if group:
        yield torch.cat(group)
