"""Are generated images still noise? Their neighbouring pixels' correlations, as a share of those of real images.

Let rho(d) be the correlation of pixels at a displacement d, after each channel of each image has lost its own mean. For
white noise rho(d) is 0. If an image is a signal plus white noise, rho(d) is the signal's correlation times the
signal's share of the variance. The least-squares fit of the real images' rho to the generated images' rho,

    structure = sum_d rho_generated(d) rho_real(d) / sum_d rho_real(d)^2,

is therefore the share of the pixels' variance that is structured like real images: 1 for real images, 0 for white
noise. It does not depend on contrast, size or number of channels. Below ``THRESHOLD``, more than half of the variance
is noise. ``docs/evaluation.md`` has measurements on the digits.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

DISPLACEMENTS = ((0, 1), (1, 0), (1, 1), (0, 2), (2, 0))  # rows, columns
THRESHOLD = 0.5
MIN_NORM = 0.2  # real images with a smaller norm of rho are like noise themselves: the share would mean nothing
_BLOCK = 50  # images at a time, so that their products take little memory
_DEVIATIONS = 2  # by which the share lies below the threshold, given the number of pixels


@dataclass
class PixelCorrelation:
    """The correlations rho(d) of a stream of images; only sums are kept.

    Attributes
    ----------
    num_pixels : int
        Pixels of all images and channels so far.
    """

    num_pixels: int = 0
    _squares: float = 0.0
    _products: Tensor = field(default_factory=lambda: torch.zeros(len(DISPLACEMENTS), dtype=torch.float64))
    _counts: Tensor = field(default_factory=lambda: torch.zeros(len(DISPLACEMENTS), dtype=torch.float64))

    def add(self, images: Tensor) -> None:
        """Add a batch, uint8 (B, C, H, W)."""
        for start in range(0, len(images), _BLOCK):
            self._add(images[start : start + _BLOCK].cpu().float())

    def _add(self, x: Tensor) -> None:
        x = x - x.mean((2, 3), keepdim=True)
        height, width = x.shape[2:]
        self.num_pixels += x.numel()
        self._squares += float(x.square().sum(dtype=torch.float64))
        for k, (down, right) in enumerate(DISPLACEMENTS):
            if down < height and right < width:
                product = x[:, :, : height - down, : width - right] * x[:, :, down:, right:]
                self._products[k] += product.sum(dtype=torch.float64)
                self._counts[k] += product.numel()

    @property
    def values(self) -> Tensor:
        """Return rho, float64, by ``DISPLACEMENTS``; 0 if the images are too small for one, or of one colour."""
        variance = self._squares / max(1, self.num_pixels)
        if not variance:
            return torch.zeros_like(self._products)
        return torch.where(self._counts > 0, self._products / self._counts.clamp_min(1) / variance, 0.0)

    @property
    def is_flat(self) -> bool:
        """Whether every image has one colour; it then has no correlation, but it is not noise either."""
        return not self._squares


def structure_share(generated: PixelCorrelation, real: PixelCorrelation) -> float:
    """Return the share of the generated pixels' variance that is structured like real images.

    It is NaN if the check cannot decide: the real images look like noise themselves, or the generated ones are flat.
    """
    norm = float(real.values.norm())
    if norm < MIN_NORM or generated.is_flat:
        return math.nan
    return float(generated.values @ real.values) / norm**2


def noise_note(generated: PixelCorrelation, real: PixelCorrelation) -> str:
    """Return a caveat and its remedy if the generated images are still noise, beyond chance; else an empty text."""
    share = structure_share(generated, real)
    if math.isnan(share):
        return ""
    deviation = 1 / (float(real.values.norm()) * math.sqrt(generated.num_pixels))
    if share + _DEVIATIONS * deviation >= THRESHOLD:
        return ""
    return (
        f"the images are still noise: their neighbouring pixels have {max(0.0, share):.0%} of the correlation of real "
        f"images, less than {THRESHOLD:.0%}, so train for more steps or rounds, or with another learning rate"
    )
