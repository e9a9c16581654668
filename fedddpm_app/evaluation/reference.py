"""The real side of a comparison: reference features and floors, computed once per data set and extractor."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fedddpm_app.apportion import labels_by_share
from fedddpm_app.diffusion.images import ImageTensors, concatenate
from fedddpm_app.evaluation.comparison import NEIGHBOURS, Measured, compare, compare_classes
from fedddpm_app.evaluation.extractors import Extractor, Features
from fedddpm_app.evaluation.extractors.cache import load_or_create
from fedddpm_app.seeding import derive_seed
from fedddpm_app.weights import Weights

VERSION = 2  # increased with every change of the cache's content
REFERENCE_SEED = 0  # the same for every run, so that runs are comparable
CLASSES = "class-tv"
NUM_SPLITS = 10  # divisions of the real images, over which a floor is the mean

SplitName = Literal["test", "train"]


@dataclass(frozen=True)
class RealImages:
    """A data set's real images.

    Attributes
    ----------
    train, test : ImageTensors
        uint8 (N, C, H, W), on the CPU.
    digests : dict of str to str
        The SHA-256 of both splits, by name.
    class_names : sequence of str
        By label; empty if the classes have no names.
    """

    train: ImageTensors
    test: ImageTensors
    digests: dict[str, str]
    class_names: Sequence[str] = ()

    def split(self, name: SplitName) -> ImageTensors:
        """Return a split by its name."""
        return self.test if name == "test" else self.train


@dataclass(frozen=True)
class Floor:
    """The metrics of real images against real images.

    Attributes
    ----------
    measures : dict of str to Measured
        By name; values are means over ``NUM_SPLITS`` divisions of the same images, ``std`` their deviation.
    n, reference_n : int
        Sizes of the two sets.
    """

    measures: dict[str, Measured]
    n: int
    reference_n: int


class Reference:
    """Features of the reference split, and floors for any number of generated images.

    Parameters
    ----------
    real : RealImages
        All real images: the floor samples from both splits.
    split : {"test", "train"}
        The split that generated images are compared with.
    extractor : Extractor
        Maps images to features.
    classifier : Extractor or None
        Predicts labels; may be the extractor; None if the data have no labels.
    cache_dir : Path
        The folder for features and floors.
    conditional : bool
        Whether generated images have labels with the class shares of the reference; for the floor.
    """

    def __init__(
        self,
        real: RealImages,
        split: SplitName,
        extractor: Extractor,
        classifier: Extractor | None,
        cache_dir: Path,
        *,
        conditional: bool = False,
    ) -> None:
        self.real = real
        self.split: SplitName = split
        self.extractor = extractor
        self.classifier = classifier
        self.conditional = conditional
        self._cache_dir = cache_dir

    @property
    def images(self) -> ImageTensors:
        """The reference split."""
        return self.real.split(self.split)

    @property
    def digest(self) -> str:
        """The first 16 hex digits of the reference split's SHA-256."""
        return self.real.digests[self.split][:16]

    @cached_property
    def vectors(self) -> Tensor:
        """The features of the reference split, float32 (M, d), from the cache after the first time."""
        path = self._path("features", self.extractor.digest, self.digest)
        return load_or_create(path, lambda: {"vectors": self.extractor(self.images.images).vectors})["vectors"]

    def labels_of(self, images: Tensor, features: Features) -> Tensor | None:
        """Return the classifier's logits of images, given the extractor's features of them; None without labels."""
        if self.classifier is None:
            return None
        return features.logits if self.classifier is self.extractor else self.classifier(images).logits

    def floor(self, n: int, names: Collection[str] = ()) -> Floor:
        """Return the metrics ``names`` of ``n`` real images against as many real images as the reference split has.

        Both sets are sampled, without a common image, from the two splits together: a classifier knows the images that
        it was trained on, so both sets must contain the same share of them. If there are not enough images, both sets
        are smaller. One division is noisy, so the sampled images are divided ``NUM_SPLITS`` times, by ``divide``.
        """
        total = len(self.real.test) + len(self.real.train)
        first = min(n, total // 2)
        second = min(len(self.images), total - first)
        classifier = self.classifier.digest if self.classifier else "unlabelled"
        data = [self.real.digests[split][:16] for split in ("test", "train")]
        classes = "conditional" if self.conditional else "drawn", self.split  # how they are divided
        parts = (classifier, *data, first, second, NEIGHBOURS, NUM_SPLITS, *classes)
        path = self._path("floor", self.extractor.digest, *parts)
        stored = load_or_create(path, lambda: self._measure_floor(first, second), names)
        measures = {name: Measured(float(row[0]), float(row[1]), int(row[2])) for name, row in stored.items()}
        return Floor(measures, first, second)

    def _path(self, kind: str, *inputs: object) -> Path:
        """Return a cache file; device and CPU threads are in its name, because last digits depend on them."""
        device = f"{self.extractor.device.type}{torch.get_num_threads()}"
        return self._cache_dir / "references" / f"{kind}-v{VERSION}-{device}-{'-'.join(map(str, inputs))}.safetensors"

    def _measure_floor(self, first: int, second: int) -> Weights:
        generator = torch.Generator().manual_seed(derive_seed(REFERENCE_SEED, "floor"))
        rows = torch.randperm(len(self.real.test) + len(self.real.train), generator=generator)
        labels = [self.real.test.labels, self.real.train.labels]
        pooled = None if labels[0] is None or labels[1] is None else torch.cat(labels)[rows]  # type: ignore[arg-type]
        sample = self._pool(rows[for_division(pooled, first, second, self.images.labels)])
        features = self.extractor(sample.images)
        predicted = self.labels_of(sample.images, features)
        found: dict[str, list[Measured]] = {}
        for _ in range(NUM_SPLITS):
            one, other = divide(
                sample.labels, first, second, self.images.labels, generator, conditional=self.conditional
            )
            measures = compare(features.select(one), features.vectors[other], REFERENCE_SEED)
            if predicted is not None and sample.labels is not None:
                measures[CLASSES] = compare_classes(predicted[one], sample.labels[other])
            for name, measured in measures.items():
                found.setdefault(name, []).append(measured)
        return {name: _mean(measures) for name, measures in found.items()}

    def _pool(self, rows: Tensor) -> ImageTensors:
        """Return rows of the test split followed by the training split, without joining the two."""
        test = len(self.real.test)
        parts = [self.real.test.select(rows[rows < test]), self.real.train.select(rows[rows >= test] - test)]
        return concatenate(parts)


def for_division(labels: Tensor | None, first: int, second: int, reference: Tensor | None) -> Tensor:
    """Return the places of ``first + second`` images: the first ones of each class, in the numbers ``divide`` needs.

    These are the class shares of ``reference`` for the second set, and of ``labels`` for the first one, as far as there
    are images; the places that are left are the first ones of any class.
    """
    size = first + second
    if labels is None or reference is None:
        return torch.arange(size)
    classes = int(torch.cat([labels, reference]).max()) + 1
    wanted = torch.zeros(classes, dtype=torch.long)
    for count, shares in ((first, labels), (second, reference)):
        wanted += labels_by_share(count, shares.bincount(minlength=classes).tolist()).bincount(minlength=classes)
    is_wanted = _rank_within_class(labels) < wanted[labels]
    return torch.argsort((~is_wanted).long(), stable=True)[:size]


def divide(
    labels: Tensor | None,
    first: int,
    second: int,
    reference: Tensor | None,
    generator: torch.Generator,
    *,
    conditional: bool = False,
) -> tuple[Tensor, Tensor]:
    """Divide images into a set for the generated images and one for the reference; return their rows.

    The reference is the same for every run, so its classes do not vary: the second set has the class shares of
    ``reference``, as far as there are images. A generator draws the class of each image, so the first set does, too,
    with the class shares of the rest; a ``conditional`` one gets labels with the shares of the reference. An image of
    a class that runs short occurs more than once.

    Parameters
    ----------
    labels : Tensor or None
        int64, shape (``first`` + ``second``,).
    first, second : int
        The sizes of the two sets.
    reference : Tensor or None
        Labels of the reference split, int64.
    generator : torch.Generator
        Determines the division.
    """
    order = torch.randperm(first + second, generator=generator)
    if labels is None or reference is None:
        return order[:first], order[first:]
    shares = reference.bincount(minlength=int(labels.max()) + 1)
    wanted = labels_by_share(second, shares.tolist()).bincount(minlength=len(shares))
    belongs = _rank_within_class(labels[order]) < wanted[labels[order]]
    order = order[torch.argsort(belongs.long(), stable=True)]
    rest, other = order[:first], order[first:]
    left = labels[rest].bincount(minlength=len(shares))
    if conditional and (shares * (left > 0)).any():
        drawn = labels_by_share(first, (shares * (left > 0)).tolist())
    else:
        drawn = labels[rest][torch.randint(first, (first,), generator=generator)]
    by_class = rest[torch.argsort(labels[rest], stable=True)]
    starts = left.cumsum(0) - left
    return by_class[starts[drawn] + _rank_within_class(drawn) % left[drawn]], other


def _rank_within_class(labels: Tensor) -> Tensor:
    """Return for each label how many equal ones are before it."""
    by_class = torch.argsort(labels, stable=True)
    starts = torch.cumsum(labels.bincount(), 0) - labels.bincount()
    ranks = torch.empty_like(labels)
    ranks[by_class] = torch.arange(len(labels)) - starts[labels[by_class]]
    return ranks


def _mean(measures: Sequence[Measured]) -> Tensor:
    values = torch.tensor([measured.value for measured in measures], dtype=torch.float64)
    return torch.stack([values.mean(), values.std(), torch.tensor(measures[0].reference_n, dtype=torch.float64)])
