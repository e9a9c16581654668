"""The denoising objective (Ho et al. 2020, eq. 14), with the scheduler's forward process.

    L(w; x) = E_{t, noise} weight(t) || target - model_w(x_t, t) ||^2,   x_t = sqrt(abar_t) x + sqrt(1 - abar_t) noise

The target is the noise (``epsilon``), the image (``sample``) or the velocity of Salimans and Ho 2022,
v = sqrt(abar_t) noise - sqrt(1 - abar_t) x (``v_prediction``). ``loss = "huber"`` replaces the square of a pixel's
error e by e^2 / 2 up to |e| = 1, and by |e| - 1 / 2 above (smooth L1, as in FedDiffuse, arXiv 2406.12575).

``loss-weighting = "sigmoid-log-snr"`` is stated for the velocity (Tun et al. 2023,
https://doi.org/10.1109/ATC58710.2023.10318858): weight(t) = sigmoid(log(abar_t / (1 - abar_t))) = abar_t. An error of
the velocity is the error of the noise that it implies, divided by sqrt(abar_t), and this error is that of the image
times sqrt(abar_t / (1 - abar_t)), so the same squared error has

    weight(t) = abar_t for v_prediction,   abar_t / (1 - abar_t) for sample,   1 for epsilon:

with ``loss = "mse"``, it is Ho's unweighted loss of the noise, whatever the network predicts.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import DDPMScheduler
from torch import Tensor, nn

from fedddpm_app.config import DataConfig, DiffusionConfig
from fedddpm_app.diffusion.guidance import ClassDropout, class_dropout_of
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
    loss : {"mse", "huber"}
        The loss of a pixel.
    weighting : {"none", "sigmoid-log-snr"}
        The weight of a timestep; see the module's text.
    class_dropout : ClassDropout, optional
        Replaces labels by the null class in training.
    """

    def __init__(
        self,
        scheduler: DDPMScheduler,
        horizontal_flip: bool = False,
        *,
        loss: Literal["mse", "huber"] = "mse",
        weighting: Literal["none", "sigmoid-log-snr"] = "none",
        class_dropout: ClassDropout | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.horizontal_flip = horizontal_flip
        self.class_dropout = class_dropout
        self._loss = F.mse_loss if loss == "mse" else F.smooth_l1_loss
        self._is_weighted = weighting != "none"
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

    def weight(self, t: Tensor) -> Tensor | None:
        """Return each timestep's weight, shape (B,); None for weights of 1."""
        kind = self.scheduler.config.prediction_type
        if not self._is_weighted or kind == "epsilon":
            return None
        abar: Tensor = self.scheduler.alphas_cumprod.to(t.device)[t]
        return abar if kind == "v_prediction" else abar / (1 - abar)

    def losses(self, model: nn.Module, batch: ImageBatch, t: Tensor, noise: Tensor) -> Tensor:
        """Return each image's mean loss over its pixels, times the weight of its timestep.

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
        return self.losses_of(prediction, self.target(batch.images, noise, t), t)

    def losses_of(self, prediction: Tensor, target: Tensor, t: Tensor) -> Tensor:
        """Return each image's mean loss over its pixels, times the weight of its timestep, shape (B,).

        ``prediction`` and ``target`` have the shape (B, C, H, W), and the result has the dtype of ``target``.
        """
        losses: Tensor = self._loss(prediction.to(target.dtype), target, reduction="none").flatten(1).mean(1)
        weight = self.weight(t)
        return losses if weight is None else losses * weight

    def augmented(self, batch: ImageBatch, generator: torch.Generator) -> ImageBatch:
        """Return a batch for training: mirrored by ``horizontal_flip``, without some labels by ``class_dropout``."""
        if self.horizontal_flip:
            batch = flip_half(batch, generator)
        return self.class_dropout(batch, generator) if self.class_dropout else batch

    def __call__(self, model: nn.Module, batch: ImageBatch, generator: torch.Generator) -> Tensor:
        """Return the loss of a batch, a scalar, with t uniform on {0, ..., T - 1} and noise from ``generator``.

        A model in training mode gets images as ``augmented`` changes them.
        """
        if model.training:
            batch = self.augmented(batch, generator)
        images = batch.images
        t = torch.randint(self.num_timesteps, (len(images),), generator=generator, device=images.device)
        noise = torch.randn(images.shape, generator=generator, device=images.device)
        return self.losses(model, batch, t, noise).mean()


def create_objective(diffusion: DiffusionConfig, data: DataConfig) -> DenoisingObjective:
    """Create the loss that a run trains with."""
    return DenoisingObjective(
        create_noise_scheduler(diffusion),
        data.horizontal_flip,
        loss=diffusion.loss,
        weighting=diffusion.loss_weighting,
        class_dropout=class_dropout_of(data),
    )


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
