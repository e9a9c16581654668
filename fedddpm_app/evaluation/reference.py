"""The real side of a comparison: reference features and floors, computed once per data set and extractor."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fedddpm_app.diffusion.images import ImageTensors, concatenate
from fedddpm_app.evaluation.comparison import Measured, compare, compare_classes
from fedddpm_app.evaluation.extractors import Extractor, Features
from fedddpm_app.evaluation.extractors.cache import load_or_create
from fedddpm_app.seeding import derive_seed
from fedddpm_app.weights import Weights

VERSION = 1  # counts the changes to what is kept in the cache
REFERENCE_SEED = 0  # the same for every run, so that runs compare
CLASSES = "class-tv"

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
    """

    train: ImageTensors
    test: ImageTensors
    digests: dict[str, str]

    def split(self, name: SplitName) -> ImageTensors:
        """Return a split by its name."""
        return self.test if name == "test" else self.train


@dataclass(frozen=True)
class Floor:
    """What real images score against real images: every measure by name, and the sizes of the two sets."""

    measures: dict[str, Measured]
    n: int
    reference_n: int


class Reference:
    """Features of the reference split, and floors for any number of generated images.

    Parameters
    ----------
    real : RealImages
        All real images: the floor draws from both splits.
    split : {"test", "train"}
        What generated images are compared with.
    extractor : Extractor
        Maps images to features.
    classifier : Extractor or None
        Predicts labels; may be the extractor; None where the data have no labels.
    cache_dir : Path
        Where features and floors are kept.
    """

    def __init__(
        self, real: RealImages, split: SplitName, extractor: Extractor, classifier: Extractor | None, cache_dir: Path
    ) -> None:
        self.real = real
        self.split: SplitName = split
        self.extractor = extractor
        self.classifier = classifier
        self._folder = cache_dir / "references"

    @property
    def images(self) -> ImageTensors:
        """The reference split."""
        return self.real.split(self.split)

    @property
    def digest(self) -> str:
        """The first 16 hex digits of the reference split's SHA-256."""
        return self.real.digests[self.split][:16]

    def features(self) -> Features:
        """Return the features of the reference split, from the cache after the first time."""
        path = self._folder / f"features-v{VERSION}-{self.extractor.digest}-{self.digest}.safetensors"
        stored = load_or_create(path, lambda: _to_weights(self.extractor(self.images.images)))
        return Features(stored["vectors"], stored.get("logits"))

    def labels_of(self, images: Tensor, features: Features) -> Tensor | None:
        """Return the classifier's logits of images, given the extractor's features of them; None without labels."""
        if self.classifier is None:
            return None
        return features.logits if self.classifier is self.extractor else self.classifier(images).logits

    def floor(self, n: int) -> Floor:
        """Return what ``n`` real images score against as many real images as the reference split has.

        Both sets are drawn, without a common image, from the two splits together (a classifier knows the images that
        it was trained on, so that both sets must hold as many of them); where there are not enough, both are smaller.
        """
        total = len(self.real.test) + len(self.real.train)
        first = min(n, total // 2)
        second = min(len(self.images), total - first)
        digests = f"{self.extractor.digest}-{self.classifier.digest if self.classifier else 'unlabelled'}"
        data = f"{self.real.digests['test'][:16]}-{self.real.digests['train'][:16]}"
        path = self._folder / f"floor-v{VERSION}-{digests}-{data}-{first}-{second}.safetensors"
        stored = load_or_create(path, lambda: self._measure_floor(first, second))
        measures = {name: Measured(float(row[0]), float(row[1]), int(row[2])) for name, row in stored.items()}
        return Floor(measures, first, second)

    def _measure_floor(self, first: int, second: int) -> Weights:
        test = len(self.real.test)
        generator = torch.Generator().manual_seed(derive_seed(REFERENCE_SEED, "floor"))
        rows = torch.randperm(test + len(self.real.train), generator=generator)
        sets = [self._pool(rows[:first], test), self._pool(rows[first : first + second], test)]
        features = [self.extractor(part.images) for part in sets]
        measures = compare(features[0], features[1], REFERENCE_SEED)
        logits, labels = self.labels_of(sets[0].images, features[0]), sets[1].labels
        if logits is not None and labels is not None:
            measures[CLASSES] = compare_classes(logits, labels)
        return {name: torch.tensor(measured, dtype=torch.float64) for name, measured in measures.items()}

    def _pool(self, rows: Tensor, test: int) -> ImageTensors:
        """Return rows of the test split followed by the training split, without joining the two."""
        parts = [self.real.test.select(rows[rows < test]), self.real.train.select(rows[rows >= test] - test)]
        return concatenate(parts)


def _to_weights(features: Features) -> Weights:
    return {"vectors": features.vectors} | ({} if features.logits is None else {"logits": features.logits})
