"""Sampling of batches of the auxiliary set from a client's model: the same code on the server and on a node."""

from collections.abc import Iterable, Iterator
from typing import Literal

import diffusers
import torch
from torch import Tensor
from torch.nn import Module

from fedddpm_app import weights as weights_module
from fedddpm_app.config import Config
from fedddpm_app.device import cpu_threads
from fedddpm_app.diffusion.objective import create_noise_scheduler
from fedddpm_app.diffusion.sampling import SampleBatch, sample_batch
from fedddpm_app.training.acceleration import choose
from fedddpm_app.weights import Weights


class AuxiliarySampler:
    """Samples with the run's ``auxiliary-sampler``.

    Parameters
    ----------
    config : Config
        The run's config.
    model : nn.Module
        A denoiser on the device to sample on; the weights are loaded into it.
    """

    def __init__(self, config: Config, model: Module) -> None:
        self.config = config
        self.model = model
        self.scheduler = create_noise_scheduler(config.diffusion)
        self.device = next(model.parameters()).device
        self.shape = config.data.image_shape

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """The run's precision on CUDA; fp32 elsewhere, where bf16 gains nothing."""
        if self.device.type != "cuda":
            return "fp32"
        return choose(self.config.run, self.model, self.device).precision

    def sample(self, weights: Weights, batches: Iterable[SampleBatch]) -> Iterator[Tensor]:
        """Yield each batch's images, uint8 (B, C, H, W) on the CPU, from a model of ``weights``.

        Sums depend on the number of threads, which is therefore ``server-threads`` on the server and on a node.

        Raises
        ------
        DivergedError
            If the model generates NaN.
        """
        weights_module.load_into(self.model, weights)
        for batch in batches:
            with cpu_threads(self.config.run.server_threads):
                images = sample_batch(
                    self.model,
                    self.scheduler,
                    batch,
                    sampler=self.config.auxiliary.sampler,
                    steps=self.config.auxiliary.sampler_steps,
                    shape=self.shape,
                    eta=self.config.diffusion.ddim_eta,
                    precision=self.precision,
                )
            yield images

    def describe(self) -> dict[str, object]:
        """Return the settings that the images depend on besides the weights and the batch."""
        auxiliary = self.config.auxiliary
        return {
            "model": dict(getattr(self.model, "config", {})),
            "forward": dict(self.scheduler.config),
            "sampler": [auxiliary.sampler, auxiliary.sampler_steps, self.config.diffusion.ddim_eta],
            "precision": self.precision,
            "device": [self.device.type, torch.backends.cpu.get_cpu_capability()],
            "threads": self.config.run.server_threads,
            "versions": [torch.__version__, diffusers.__version__],
        }
