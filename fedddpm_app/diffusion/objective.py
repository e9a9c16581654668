"""The denoising objective (Ho et al. 2020, eq. 14), with the scheduler's forward process.

    L(w; x) = E_{t, noise} || target - model_w(x_t, t) ||^2,   x_t = sqrt(abar_t) x + sqrt(1 - abar_t) noise

The target is the noise (``epsilon``), the image (``sample``) or the velocity of Salimans and Ho 2022
(``v_prediction``).
"""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import DDPMScheduler
from torch import Tensor, nn

from fedddpm_app.config import DiffusionConfig
from fedddpm_app.diffusion.images import ImageBatch


def create_noise_scheduler(config: DiffusionConfig) -> DDPMScheduler:
    """Create the forward process with T = ``diffusion_steps``; sampling clips images to [-1, 1]."""
    return DDPMScheduler(
        num_train_timesteps=config.diffusion_steps,
        beta_schedule=config.beta_schedule,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        prediction_type=config.prediction_type,
        clip_sample=True,
    )


class DenoisingObjective:
    """The training loss of a diffusion model.

    Parameters
    ----------
    scheduler : DDPMScheduler
        Supplies T, ``alphas_cumprod`` and the prediction type.
    horizontal_flip : bool
        Mirror each image with probability 1/2 in training.
    """

    def __init__(self, scheduler: DDPMScheduler, horizontal_flip: bool = False) -> None:
        self.scheduler = scheduler
        self.horizontal_flip = horizontal_flip
        self.num_timesteps: int = scheduler.config.num_train_timesteps

    def target(self, x_start: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the model's target, shape (B, C, H, W)."""
        match self.scheduler.config.prediction_type:
            case "epsilon":
                return noise
            case "sample":
                return x_start
            case _:
                velocity: Tensor = self.scheduler.get_velocity(x_start, noise, t)
                return velocity

    def losses(self, model: nn.Module, batch: ImageBatch, t: Tensor, noise: Tensor) -> Tensor:
        """Return each image's mean squared error over its pixels.

        Parameters
        ----------
        model : nn.Module
            Called as ``UNet2DModel`` is.
        batch : ImageBatch
            Images ``x_start`` in [-1, 1], shape (B, C, H, W).
        t : Tensor
            int64 in [0, T), shape (B,).
        noise : Tensor
            Standard normal, shape (B, C, H, W).

        Returns
        -------
        Tensor
            float32, shape (B,).
        """
        x_t = self.scheduler.add_noise(batch.images, noise, t)
        prediction = predict(model, x_t, t, batch.labels)
        target = self.target(batch.images, noise, t)
        return F.mse_loss(prediction.float(), target, reduction="none").flatten(1).mean(1)

    def __call__(self, model: nn.Module, batch: ImageBatch, generator: torch.Generator) -> Tensor:
        """Return the loss of a batch, a scalar, with t uniform on {0, ..., T - 1} and noise from ``generator``.

        With ``horizontal_flip``, a model in training mode gets mirrored images.
        """
        if self.horizontal_flip and model.training:
            batch = flip_half(batch, generator)
        images = batch.images
        t = torch.randint(self.num_timesteps, (len(images),), generator=generator, device=images.device)
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        return self.losses(model, batch, t, noise).mean()


def flip_half(batch: ImageBatch, generator: torch.Generator) -> ImageBatch:
    """Mirror every image left to right with probability 1/2."""
    images = batch.images
    chosen = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    return ImageBatch(torch.where(chosen[:, None, None, None], images.flip(-1), images), batch.labels)


def predict(model: nn.Module, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """Call a ``UNet2DModel``, with class labels if it is conditional; returns (B, C, H, W)."""
    condition: dict[str, Any] = {} if labels is None else {"class_labels": labels}
    output: Tensor = model(x_t, t, return_dict=False, **condition)[0]
    return output
