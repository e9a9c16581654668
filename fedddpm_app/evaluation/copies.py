"""The memorisation check of a stream of images: the share and the list of those abnormally close to training images."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedddpm_app.evaluation.comparison import spread
from fedddpm_app.evaluation.extractors.cache import load_or_create
from fedddpm_app.evaluation.memorization import (
    Neighbours,
    as_trained,
    memorized_share,
    nearest_training,
    threshold_at,
)
from fedddpm_app.evaluation.metrics import Metric, SamplingInfo
from fedddpm_app.weights import Weights

MAX_HELD_OUT = 2000  # held-out images for the calibration of the threshold
NUM_PAIRS = 20
VERSION = 2  # increased with every change of the cache's content
MEMORIZED = "memorized-share"


@dataclass
class Pairs:
    """The generated images that are closest to training images, in ascending order of the ratio.

    Attributes
    ----------
    generated, train : Tensor
        uint8, shape (P, C, H, W) each.
    ratio : Tensor
        float32, shape (P,).
    """

    generated: Tensor
    train: Tensor
    ratio: Tensor


class CopyDetector:
    """Compares images with the images that a model was trained on.

    The threshold is calibrated: a share ``rate`` of held-out real images lies below it. Held-out images that are also
    training images, which real data sets contain, are left out of the calibration.

    Parameters
    ----------
    train : Tensor
        uint8, shape (M, C, H, W): the images that the model was trained on.
    held_out : Tensor
        uint8, shape (N, C, H, W): real images that the model was not trained on.
    neighbours : int
        k of the ratio (Carlini et al. 2023).
    rate : float
        In [0, 1].
    digest : str
        Identifies both sets, and whether the first one counts mirrored, in the cache.
    cache_dir : Path
        The folder for the held-out images' ratios.
    mirrored : bool
        Whether the model was also trained on the training images' mirror images, whose copies then count.
    """

    def __init__(
        self,
        train: Tensor,
        held_out: Tensor,
        *,
        neighbours: int,
        rate: float,
        digest: str,
        cache_dir: Path,
        mirrored: bool = False,
    ) -> None:
        self.num_train = len(train)
        self.train = as_trained(train, mirrored=mirrored)
        self.neighbours = neighbours
        self.rate = rate
        self.digest = digest
        held_out = spread(held_out, MAX_HELD_OUT)
        path = cache_dir / "references" / f"ratios-v{VERSION}-{digest}-{neighbours}.safetensors"
        stored = load_or_create(path, lambda: _ratios(held_out, self.train, neighbours))
        fresh = stored["distance"] > 0
        self.num_duplicates = int((~fresh).sum())
        self.held_out_ratios = stored["ratio"][fresh]
        self.threshold = threshold_at(self.held_out_ratios, rate) if len(self.held_out_ratios) else 0.0

    @property
    def num_held_out(self) -> int:
        """The number of held-out images, with those that are also training images."""
        return len(self.held_out_ratios) + self.num_duplicates

    @property
    def held_out_share(self) -> float:
        """The share of all held-out images that would count as copies, as they would if a generator had drawn them.

        The threshold of one half of those that are no training images is calibrated on the other half; held-out images
        that are also training images count in any case.
        """
        halves = self.held_out_ratios[::2], self.held_out_ratios[1::2]
        if not len(halves[1]):
            return torch.nan
        pairs = (halves, halves[::-1])
        below = sum(len(one) * memorized_share(one, threshold_at(other, self.rate)) for one, other in pairs)
        return (below + self.num_duplicates) / self.num_held_out

    def start(self) -> "CopySearch":
        """Return a search through a new stream of images."""
        return CopySearch(self)


class CopySearch:
    """A search through images in batches, which keeps only the closest images.

    Attributes
    ----------
    pairs : Pairs
        The closest images so far.
    """

    def __init__(self, detector: CopyDetector) -> None:
        self.detector = detector
        none = detector.train[:0]
        self.pairs = Pairs(none, none, torch.empty(0))
        self._ratios: list[Tensor] = []
        self._distances: list[Tensor] = []

    def add(self, images: Tensor) -> None:
        """Search a batch, uint8 (B, C, H, W)."""
        found = nearest_training(images, self.detector.train, self.detector.neighbours)
        self._ratios.append(found.ratio)
        self._distances.append(found.distance)
        self._keep_closest(images, found)

    def metric(self, reference: str, sampling: SamplingInfo, name: str = MEMORIZED) -> Metric:
        """Return the share of images that count as copies; its floor is that of the held-out images."""
        detector, ratios, distances = self.detector, torch.cat(self._ratios), torch.cat(self._distances)
        held_out = detector.held_out_ratios
        exact = distances == 0
        return Metric(
            name=name,
            value=float(((ratios < detector.threshold) | exact).double().mean()),
            std=None,
            n=len(ratios),
            reference=reference,
            reference_n=detector.num_train,
            reference_digest=detector.digest,
            extractor="pixels",
            extractor_digest="pixels",
            sampling=sampling,
            floor=detector.held_out_share,
            floor_std=None,
            floor_n=detector.num_held_out,
            floor_reference_n=detector.num_train,
            note=_note(detector),
            details={
                "threshold": detector.threshold,
                "rate": detector.rate,
                "neighbours": min(detector.neighbours, len(detector.train)),
                "median_ratio": float(ratios.median()),
                "floor_median_ratio": float(held_out.median()) if len(held_out) else torch.nan,
                "least_ratio": float(ratios.min()),
                "exact_copies": int(exact.sum()),
                "held_out_duplicates": detector.num_duplicates,
            },
        )

    def _keep_closest(self, images: Tensor, found: Neighbours) -> None:
        ratio = torch.cat([self.pairs.ratio, found.ratio])
        order = ratio.argsort(stable=True)[:NUM_PAIRS]
        generated = torch.cat([self.pairs.generated, images])[order]
        train = torch.cat([self.pairs.train, self.detector.train[found.index]])[order]
        self.pairs = Pairs(generated, train, ratio[order])


def _ratios(held_out: Tensor, train: Tensor, neighbours: int) -> Weights:
    found = nearest_training(held_out, train, neighbours)
    return {"ratio": found.ratio, "distance": found.distance}


def _note(detector: CopyDetector) -> str:
    """Return a caveat about the share, or an empty text."""
    held_out = len(detector.held_out_ratios)
    if held_out * detector.rate < 1:
        return f"{held_out} held-out images are too few to calibrate a rate of {detector.rate}"
    return ""
