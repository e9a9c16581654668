"""The denoising loss on held-out data, with fixed t and noise, so that it has no sampling noise over rounds."""

import torch
from torch import nn

from fedddpm_app.diffusion.objective import DenoisingObjective
from fedddpm_app.seeding import derive_seed
from fedddpm_app.task import TrainingData

EVALUATION_SEED = 0  # the same t and noise for every run, so that runs compare
_BATCH_SIZE = 256


@torch.no_grad()
def denoising_loss(model: nn.Module, objective: DenoisingObjective, data: TrainingData, draws: int) -> float:
    """Return the mean denoising loss over all images.

    Parameters
    ----------
    model : nn.Module
        On the device of ``data``; its training mode is restored afterwards.
    objective : DenoisingObjective
        The loss of Ho et al. 2020, eq. 14.
    data : TrainingData
        At least one image; labels are used as they are (None for an unconditional model).
    draws : int
        (t, noise) pairs per image, t spread evenly over [0, T).

    Returns
    -------
    float
        NaN when ``data`` is empty.
    """
    if not len(data):
        return float("nan")
    was_training = model.training
    model.eval()
    generator = torch.Generator().manual_seed(derive_seed(EVALUATION_SEED, "denoising-loss"))
    total = 0.0
    for draw in range(draws):
        for index in torch.split(torch.arange(len(data)), _BATCH_SIZE):
            batch = data.batch(index.to(data.device))
            place = (draw + torch.rand(len(index), generator=generator)) / draws
            t = (place * objective.num_timesteps).long().clamp_(max=objective.num_timesteps - 1)
            noise = torch.randn(batch.images.shape, generator=generator)
            losses = objective.losses(model, batch, t.to(data.device), noise.to(data.device))
            total += float(losses.double().sum())
    model.train(was_training)
    return total / (draws * len(data))
