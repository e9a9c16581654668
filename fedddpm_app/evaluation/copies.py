"""The memorisation check of a stream of images: how many are abnormally close to a training image, and which."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedddpm_app.evaluation.comparison import spread
from fedddpm_app.evaluation.extractors.cache import load_or_create
from fedddpm_app.evaluation.figures import Drawing, Figure
from fedddpm_app.evaluation.memorization import Neighbours, memorized_share, nearest_training, threshold_at

MAX_HELD_OUT = 2000  # held-out images that the threshold is calibrated on
NUM_PAIRS = 20
VERSION = 1  # counts the changes to what is kept in the cache
NAME = "memorized-share"


@dataclass
class Pairs:
    """The generated images that are closest to training images, the closest first.

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
    """Compares images with those that a model was trained on.

    The threshold is calibrated: a share ``rate`` of held-out real images, which are no copies, lies below it.

    Parameters
    ----------
    train : Tensor
        uint8, shape (M, C, H, W): what the model was trained on.
    held_out : Tensor
        uint8, shape (N, C, H, W): real images that it was not trained on.
    neighbours : int
        k of the ratio (Carlini et al. 2023).
    rate : float
        In [0, 1].
    digest : str
        Names both sets in the cache.
    cache_dir : Path
        Where the held-out images' ratios are kept.
    """

    def __init__(
        self, train: Tensor, held_out: Tensor, *, neighbours: int, rate: float, digest: str, cache_dir: Path
    ) -> None:
        self.train = train
        self.neighbours = neighbours
        self.rate = rate
        self.digest = digest
        held_out = spread(held_out, MAX_HELD_OUT)
        path = cache_dir / "references" / f"ratios-v{VERSION}-{digest}-{neighbours}.safetensors"
        stored = load_or_create(path, lambda: {"ratio": nearest_training(held_out, train, neighbours).ratio})
        self.held_out_ratios = stored["ratio"]
        self.threshold = threshold_at(self.held_out_ratios, rate)

    def start(self) -> "CopySearch":
        """Return a search through a new stream of images."""
        return CopySearch(self)


class CopySearch:
    """A search through images that come batch by batch; of the images only the closest are kept.

    Attributes
    ----------
    pairs : Pairs
        The closest so far.
    """

    def __init__(self, detector: CopyDetector) -> None:
        self.detector = detector
        none = detector.train[:0]
        self.pairs = Pairs(none, none, torch.empty(0))
        self._ratios: list[Tensor] = []
        self._distances: list[Tensor] = []

    def add(self, images: Tensor) -> None:
        """Look at a batch, uint8 (B, C, H, W)."""
        found = nearest_training(images, self.detector.train, self.detector.neighbours)
        self._ratios.append(found.ratio)
        self._distances.append(found.distance)
        self._keep_closest(images, found)

    def figure(self, reference: str, drawing: Drawing, name: str = NAME) -> Figure:
        """Return the share of images below the threshold, with the held-out images' as its floor."""
        detector, ratios = self.detector, torch.cat(self._ratios)
        held_out = detector.held_out_ratios
        return Figure(
            name=name,
            value=memorized_share(ratios, detector.threshold),
            std=None,
            n=len(ratios),
            reference=reference,
            reference_n=len(detector.train),
            reference_digest=detector.digest,
            extractor="pixels",
            extractor_digest="",
            drawing=drawing,
            floor=memorized_share(held_out, detector.threshold),
            floor_n=len(held_out),
            floor_reference_n=len(detector.train),
            details={
                "threshold": detector.threshold,
                "rate": detector.rate,
                "neighbours": min(detector.neighbours, len(detector.train)),
                "median_ratio": float(ratios.median()),
                "floor_median_ratio": float(held_out.median()),
                "least_ratio": float(ratios.min()),
                "exact_copies": int((torch.cat(self._distances) == 0).sum()),
            },
        )

    def _keep_closest(self, images: Tensor, found: Neighbours) -> None:
        ratio = torch.cat([self.pairs.ratio, found.ratio])
        order = ratio.argsort(stable=True)[:NUM_PAIRS]
        generated = torch.cat([self.pairs.generated, images])[order]
        train = torch.cat([self.pairs.train, self.detector.train[found.index]])[order]
        self.pairs = Pairs(generated, train, ratio[order])
