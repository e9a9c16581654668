"""Classifier-free guidance: Jonathan Ho, Tim Salimans. 2022. https://arxiv.org/abs/2207.12598.

    Training    the label of an image becomes the null class with probability p                  Algorithm 1
    Sampling    output <- output(x_t, null) + s (output(x_t, c) - output(x_t, null))             equation (6)

Symbols: p_uncond -> probability, 1 + w -> scale s. The paper's output is the noise. Velocity and image are affine in
the noise for a given x_t, and the factors s and 1 - s add up to 1, so that the same formula holds for every
``prediction-type``. s = 1 is the conditional model, and s = 0 the unconditional one: both need one call of the model.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedddpm_app.config import Config, DataConfig
from fedddpm_app.diffusion.images import ImageBatch


@dataclass(frozen=True)
class ClassDropout:
    """The null class, and the probability with which it replaces a label in training."""

    probability: float
    null_class: int

    def __call__(self, batch: ImageBatch, generator: torch.Generator) -> ImageBatch:
        """Return a batch in which each label is the null class with the probability, independently."""
        if batch.labels is None:
            return batch
        dropped = torch.rand(len(batch.labels), generator=generator, device=batch.labels.device) < self.probability
        return ImageBatch(batch.images, batch.labels.masked_fill(dropped, self.null_class))


@dataclass(frozen=True)
class Guidance:
    """The scale s of guided samples, and the null class of the model."""

    scale: float
    null_class: int

    @property
    def mixes(self) -> bool:
        """Whether the output is one that the model does not give by itself."""
        return self.scale not in (0, 1)

    def combine(self, output: Callable[[Tensor], Tensor], labels: Tensor) -> Tensor:
        """Return the guided output of a model.

        Parameters
        ----------
        output : callable
            The model's output, float32 of shape (B, C, H, W), for labels, int64 of shape (B,).
        labels : Tensor
            int64, shape (B,): the classes that are asked for.
        """
        if self.scale == 1:
            return output(labels)
        unconditional = output(torch.full_like(labels, self.null_class))
        if self.scale == 0:
            return unconditional
        return unconditional + self.scale * (output(labels) - unconditional)


def class_dropout_of(data: DataConfig) -> ClassDropout | None:
    """Return the class dropout of a run's trainings; None without it."""
    return None if data.null_class is None else ClassDropout(data.class_dropout, data.null_class)


def guidance_of(config: Config) -> Guidance | None:
    """Return the guidance of a run's samples; None without it."""
    scale, null_class = config.diffusion.guidance_scale, config.data.null_class
    return None if null_class is None or scale == 1 else Guidance(scale, null_class)
