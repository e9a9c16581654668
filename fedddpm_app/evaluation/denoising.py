"""The denoising loss on held-out data, with fixed t and noise: it has no sampling noise over rounds."""

import itertools
from typing import NamedTuple

import torch
from torch import nn

from fedddpm_app.diffusion.objective import DenoisingObjective
from fedddpm_app.seeding import derive_seed
from fedddpm_app.training.task import TrainingData

EVALUATION_SEED = 0  # the same t and noise for every run, so that runs are comparable
NUM_BANDS = 4
_BATCH_SIZE = 256


class DenoisingLoss(NamedTuple):
    """``mean``: over all images and t. ``bands``: the mean over t in each of ``NUM_BANDS`` equal parts of [0, T)."""

    mean: float
    bands: list[float]


def denoising_loss(model: nn.Module, objective: DenoisingObjective, data: TrainingData, draws: int) -> float:
    """Return the mean of ``banded_denoising_loss``."""
    return banded_denoising_loss(model, objective, data, draws).mean


@torch.no_grad()
def banded_denoising_loss(
    model: nn.Module, objective: DenoisingObjective, data: TrainingData, draws: int
) -> DenoisingLoss:
    """Return the mean denoising loss over all images, over all timesteps and per band of timesteps.

    Parameters
    ----------
    model : nn.Module
        On the device of ``data``; the function restores its training mode.
    objective : DenoisingObjective
        The loss of Ho et al. 2020, eq. 14.
    data : TrainingData
        At least one image; labels are used as they are (None for an unconditional model).
    draws : int
        (t, noise) pairs per image, t spread evenly over [0, T).

    Returns
    -------
    DenoisingLoss
        NaN if ``data`` is empty, and for a band without any t.
    """
    if not len(data):
        return DenoisingLoss(float("nan"), [float("nan")] * NUM_BANDS)
    was_training = model.training
    model.eval()
    generator = torch.Generator().manual_seed(derive_seed(EVALUATION_SEED, "denoising-loss"))
    total, sums, counts = 0.0, torch.zeros(NUM_BANDS, dtype=torch.float64), torch.zeros(NUM_BANDS)
    for draw in range(draws):
        for index in torch.split(torch.arange(len(data)), _BATCH_SIZE):
            batch = data.batch(index.to(data.device))
            place = (draw + torch.rand(len(index), generator=generator)) / draws
            t = (place * objective.num_timesteps).long().clamp_(max=objective.num_timesteps - 1)
            noise = torch.randn(batch.images.shape, generator=generator)
            losses = objective.losses(model, batch, t.to(data.device), noise.to(data.device))
            total += float(losses.double().sum())
            band = t * NUM_BANDS // objective.num_timesteps
            sums.index_add_(0, band, losses.double().cpu())
            counts += band.bincount(minlength=NUM_BANDS)
    model.train(was_training)
    return DenoisingLoss(total / (draws * len(data)), (sums / counts).tolist())


def band_edges(num_timesteps: int) -> list[tuple[int, int]]:
    """Return the first and the last t of each band of [0, T)."""
    edges = [-(-band * num_timesteps // NUM_BANDS) for band in range(NUM_BANDS + 1)]
    return [(first, end - 1) for first, end in itertools.pairwise(edges)]
