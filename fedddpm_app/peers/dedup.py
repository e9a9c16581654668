"""The training images that samples resemble too often, which their owner leaves out of its further training.

The dedup variant of PDFed (Balan et al. 2024, arXiv 2409.18245): a count of matches per training image; the top tail,
from the 95th percentile, leaves the loader.
"""

import math
from collections.abc import Iterable, Sequence

import torch

PERCENTILE = 95


def images_to_leave_out(matches: Iterable[Sequence[int]], num_images: int, percentile: float = PERCENTILE) -> list[int]:
    """Return the training images whose count of matches is in the top tail, in rising order.

    Our reading, since the paper gives no rule for ties: the percentile is taken over all training images, by nearest
    rank, and an image is left out if its count is strictly greater. So at most ``100 - percentile`` percent of the
    images are left out (which never empties the data), images of equal counts are treated alike, and no image without
    a match is left out. If fewer images than the tail has room for were matched, all matched images are left out.

    Parameters
    ----------
    matches : iterable of sequences of int
        For each submission, ``Score.matches``: an image once for each sample that is a confirmed match of it.
    num_images : int
        n, the number of training images; indices are in [0, n).
    percentile : float
        In (0, 100].

    Raises
    ------
    ValueError
        If an index or the percentile is out of its range.
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile = {percentile}, but it must be in (0, 100]")
    found = [index for indices in matches for index in indices]
    if odd := [index for index in found if not 0 <= index < num_images]:
        raise ValueError(f"match with image {odd[0]}, but there are {num_images} training images")
    if not found:
        return []
    counts = torch.bincount(torch.tensor(found), minlength=num_images)
    rank = math.ceil(num_images * percentile / 100)
    limit = counts.sort().values[rank - 1]
    left_out: list[int] = (counts > limit).nonzero().flatten().tolist()
    return left_out
