"""Look at the images of a source without decoding them: their sizes, colours and classes."""

import functools
import warnings
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from PIL import Image

from fedddpm_app.config import DataConfig
from fedddpm_app.data.decoding import UNREADABLE
from fedddpm_app.data.pixels import is_grey
from fedddpm_app.data.sites import load_splits
from fedddpm_app.data.splits import Split

MAX_PROBED = 2000  # images whose headers are read; of a larger source, these are evenly spaced
MIN_SIZE, MAX_SIZE = 8, 64  # pixels; limits of a size that is read off the data


@dataclass(frozen=True, eq=False)
class ImageFacts:
    """The images of a source, as their headers and labels describe them.

    Attributes
    ----------
    num_images : int
        Images of all splits.
    num_probed, num_colour : int
        Images whose headers were read, and how many of them are colour images.
    width, height : int
        Medians, in pixels.
    is_uniform : bool
        Whether all probed images have the same size.
    num_train : int
        Images of the training split.
    labels : np.ndarray or None
        int64 (``num_train``,): the labels of the training split; None without labels.
    num_classes : int
        The number of class names, or the largest label plus 1; 0 without labels.
    """

    num_images: int
    num_probed: int
    num_colour: int
    width: int
    height: int
    is_uniform: bool
    num_train: int
    labels: np.ndarray | None
    num_classes: int

    @property
    def image_channels(self) -> int:
        """3 if any probed image is a colour image, else 1."""
        return 3 if self.num_colour else 1

    def image_size(self, halvings: int) -> int:
        """Return the side in pixels for a UNet that halves images ``halvings`` times, down to 2 pixels or more.

        Square images of one size keep it, if the UNet can halve it and it is at most 64. Otherwise the size is the
        power of two that is nearest to the median shorter side, from 8 to 64.
        """
        side = min(self.width, self.height)
        least = 1 << (halvings + 1)
        is_square = self.is_uniform and self.width == self.height
        if is_square and side % 2**halvings == 0 and least <= side <= MAX_SIZE:
            return side
        lower = 1 << (side.bit_length() - 1)
        nearest = lower if side - lower < 2 * lower - side else 2 * lower
        return max(least, MIN_SIZE, min(nearest, MAX_SIZE))

    def __str__(self) -> str:
        """Return a phrase such as ``200 of 200 pictures are colour, median 40x30``."""
        probed = "pictures" if self.num_probed == self.num_images else "sampled pictures"
        return f"{self.num_colour} of {self.num_probed} {probed} are colour, median {self.width}x{self.height}"


@functools.lru_cache(maxsize=4)
def look_at(config: DataConfig) -> ImageFacts | None:
    """Return the facts about a config's images; only headers are read, of at most 2,000 images.

    The result is None if this host does not have the training split, or none of the images can be opened.

    Raises
    ------
    ConfigError
        When the source cannot be read.
    """
    splits = load_splits(config)
    headers = _headers(list(splits.values()))
    if "train" not in splits or not headers:
        return None
    widths, heights, colours = zip(*headers, strict=True)
    labels = [part.labels for part in splits.values() if part.labels is not None and len(part)]
    names = splits["train"].class_names
    return ImageFacts(
        num_images=sum(map(len, splits.values())),
        num_probed=len(headers),
        num_colour=sum(colours),
        width=int(np.median(widths)),
        height=int(np.median(heights)),
        is_uniform=len(set(widths)) == len(set(heights)) == 1,
        num_train=len(splits["train"]),
        labels=splits["train"].labels,
        num_classes=max([len(names), *(int(each.max()) + 1 for each in labels)]) if labels else 0,
    )


def _headers(splits: list[Split]) -> list[tuple[int, int, bool]]:
    """Return width, height and whether it is a colour image, of each probed image that can be opened."""
    rows = [(split, row) for split in splits for row in range(len(split))]
    if not rows:
        return []
    found: list[tuple[int, int, bool]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # no pixels are read here
        for index in np.unique(np.linspace(0, len(rows) - 1, min(MAX_PROBED, len(rows))).astype(int)).tolist():
            split, row = rows[index]
            with suppress(*UNREADABLE), split.read(row) as image:  # decoding reports the others
                found.append((*image.size, not is_grey(image)))
    return found
