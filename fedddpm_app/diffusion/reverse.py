"""The reverse process: from noise to images, timestep by timestep, with any scheduler of diffusers."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedddpm_app.device import autocast
from fedddpm_app.diffusion.guidance import Guidance
from fedddpm_app.diffusion.objective import predict


@torch.no_grad()
def denoise(
    model: nn.Module,
    scheduler: Any,
    noise: Tensor,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    *,
    labels: Tensor | None = None,
    guidance: Guidance | None = None,
    eta: float = 0.0,
    precision: Literal["fp32", "bf16"] = "fp32",
    progress: Callable[[Tensor], Iterable[Tensor]] = iter,
) -> Tensor:
    """Return images, float32 of shape (B, C, H, W), about in [-1, 1].

    Guidance leads to many images outside of [-1, 1], which samplers clip. DDIM then also takes the noise that belongs
    to the clipped image: with the model's noise beside a clipped image, x_t would lose its variance.

    Parameters
    ----------
    model : nn.Module
        A ``UNet2DModel``; its training mode is restored afterwards.
    scheduler : SchedulerMixin
        With its timesteps, on the CPU: a sampler reads them, and on a GPU each read would synchronise.
    noise : Tensor
        Standard normal, float32, shape (B, C, H, W), on the model's device.
    generator : torch.Generator, one per image, or None
        Of the noise that steps add; None takes torch's own.
    labels : Tensor, optional
        int64, shape (B,), on the model's device: the classes, for a conditional model.
    guidance : Guidance, optional
        For a model with a null class; None is the model as it is.
    eta : float
        As of ``sample_batch``, for a scheduler whose steps take it.
    precision : {"fp32", "bf16"}
        ``bf16`` autocasts the model's calls; all other arithmetic stays float32.
    progress : callable
        Wraps the timesteps, for example in a progress bar.
    """
    was_training, device, dtype = model.training, noise.device, next(model.parameters()).dtype
    model.eval()
    x_t: Tensor = noise * scheduler.init_noise_sigma
    taken = inspect.signature(scheduler.step).parameters
    wanted = {"generator": generator, "eta": eta, "use_clipped_model_output": guidance is not None and guidance.mixes}
    options = {name: value for name, value in wanted.items() if name in taken and value}
    for t in progress(scheduler.timesteps):
        x_in, t_model = scheduler.scale_model_input(x_t, t).to(dtype), t.to(device).expand(len(x_t))

        def output(classes: Tensor | None, x_in: Tensor = x_in, t_model: Tensor = t_model) -> Tensor:
            with autocast(device, precision):
                return predict(model, x_in, t_model, classes).float()

        guided = output(labels) if labels is None or guidance is None else guidance.combine(output, labels)
        x_t = scheduler.step(guided, t, x_t, return_dict=False, **options)[0]
    model.train(was_training)
    return x_t
