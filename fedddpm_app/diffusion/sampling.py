"""Drawing images from a diffusion model with diffusers' schedulers."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from fedddpm_app.config import Sampler
from fedddpm_app.diffusion.images import to_uint8
from fedddpm_app.diffusion.objective import predict
from fedddpm_app.seeding import derive_seed

SAMPLERS: dict[Sampler, tuple[type[Any], dict[str, Any]]] = {
    "ddpm": (DDPMScheduler, {}),
    "ddim": (DDIMScheduler, {"timestep_spacing": "trailing"}),
    "dpm-solver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
}
_MIN_LAMBDA = -5.1  # log(alpha_t / sigma_t) below which DPM-Solver++ does not start: the cosine schedule's last steps


def create_sampler(scheduler: DDPMScheduler, sampler: Sampler) -> Any:
    """Create the sampling scheduler that reverses ``scheduler``'s forward process.

    Predicted images are clipped to [-1, 1] at every step where ``scheduler`` says ``clip_sample``.
    """
    kind, options = SAMPLERS[sampler]
    if sampler == "dpm-solver++":  # its name for clipping: thresholding with a maximum of 1
        options = {**options, "thresholding": scheduler.config.get("clip_sample", True), "sample_max_value": 1.0}
    betas = scheduler.betas.tolist()  # not every sampling scheduler knows every beta schedule by name
    return kind.from_config(scheduler.config, trained_betas=betas, **options)


def set_timesteps(sampler: Any, steps: int, device: torch.device) -> None:
    """Give a sampling scheduler its timesteps, evenly spread from the noisiest one down ("trailing").

    Lin et al. 2024 (arXiv 2305.08891) show why sampling must start at T - 1. diffusers' own grids do so only
    with "trailing" spacing, and that only where ``steps`` divides T; elsewhere it repeats timesteps or ends at t = -1.

    Raises
    ------
    ValueError
        When ``steps`` is not in [1, T], or does not divide T for DDIM, whose step size is T / ``steps``.
    """
    total = sampler.config.num_train_timesteps
    if not 1 <= steps <= total:
        raise ValueError(f"steps = {steps} is not in [1, {total}]")
    if isinstance(sampler, DDIMScheduler):
        if total % steps:
            raise ValueError(f"steps = {steps} does not divide the {total} diffusion steps, as DDIM needs")
        sampler.set_timesteps(steps, device=device)
        return
    if isinstance(sampler, DPMSolverMultistepScheduler):
        total -= int((sampler.lambda_t < _MIN_LAMBDA).sum())
    sampler.set_timesteps(timesteps=timestep_grid(total, min(steps, total)), device=device)


def timestep_grid(total: int, steps: int) -> list[int]:
    """Return ``steps`` timesteps in [0, ``total``), strictly decreasing from ``total`` - 1, evenly spread."""
    return [total - 1 - k * total // steps for k in range(steps)]


def sample_images(
    model: nn.Module,
    scheduler: DDPMScheduler,
    *,
    shape: tuple[int, int, int],
    on_batch: Callable[[int], None] | None = None,
    **options: Any,
) -> Tensor:
    """Draw one image per seed, and return all of them.

    Parameters
    ----------
    model, scheduler, shape
        As of ``sample_batches``.
    on_batch : callable, optional
        Called after each batch with the number of images drawn so far.
    **options
        The other arguments of ``sample_batches``.

    Returns
    -------
    Tensor
        uint8 on the CPU, shape (N, C, H, W).
    """
    parts = [torch.empty((0, *shape), dtype=torch.uint8)]
    drawn = 0
    for images in sample_batches(model, scheduler, shape=shape, **options):
        parts.append(images)
        drawn += len(images)
        if on_batch is not None:
            on_batch(drawn)
    return torch.cat(parts)


def sample_batches(
    model: nn.Module,
    scheduler: DDPMScheduler,
    *,
    sampler: Sampler,
    steps: int,
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    labels: Tensor | None = None,
    batch_size: int = 256,
) -> Iterator[Tensor]:
    """Draw one image per seed, a batch at a time, so that memory does not grow with their number.

    Image k depends on the model, the sampler and ``seeds[k]`` alone: every image has its own generator,
    and every batch has the same shape (the last one is filled up). Only a change of that shape (another
    ``batch_size``, or fewer images than it) can move a pixel, by the rounding of a convolution.

    Parameters
    ----------
    model : nn.Module
        A ``UNet2DModel``; its training mode is restored afterwards.
    scheduler : DDPMScheduler
        The forward process it was trained with.
    sampler : {"ddpm", "ddim", "dpm-solver++"}
        ``ddpm`` is ancestral sampling (Ho et al. 2020), ``ddim`` is deterministic (Song et al. 2021,
        eta = 0), ``dpm-solver++`` is the second-order multistep solver (Lu et al. 2022).
    steps : int
        Denoising steps, in [1, T]; for ``ddim`` a divisor of T.
    seeds : list of int
        One per image, see ``image_seeds``.
    shape : (int, int, int)
        Channels, height, width of an image, pixels.
    labels : Tensor, optional
        int64, shape (N,), the class of each image for a conditional model.
    batch_size : int
        Images per model call, >= 1.

    Yields
    ------
    Tensor
        uint8 on the CPU, shape (B, C, H, W).
    """
    drawn = 0
    for index in _constant_batches(len(seeds), batch_size):
        part_labels = None if labels is None else labels[index]
        generators = [torch.Generator().manual_seed(seeds[k]) for k in index.tolist()]
        images = _reverse(model, create_sampler(scheduler, sampler), steps, generators, shape, part_labels)
        kept = min(batch_size, len(seeds) - drawn)
        yield to_uint8(images[:kept]).cpu()
        drawn += kept


def image_seeds(seed: int, purpose: str, count: int, *indices: int) -> list[int]:
    """Return the seeds of images 0 .. ``count`` - 1 of a purpose (see ``derive_seed``)."""
    return [derive_seed(seed, purpose, *indices, k) for k in range(count)]


def _constant_batches(count: int, batch_size: int) -> Iterator[Tensor]:
    """Yield index batches of one shape that cover ``range(count)``; the last one repeats its last index."""
    size = min(batch_size, count) or 1
    for start in range(0, count, size):
        yield torch.arange(start, start + size).clamp_(max=count - 1)


@torch.no_grad()
def _reverse(
    model: nn.Module,
    sampler: Any,
    steps: int,
    generators: list[torch.Generator],
    shape: tuple[int, int, int],
    labels: Tensor | None,
) -> Tensor:
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    labels = None if labels is None else labels.to(device)
    set_timesteps(sampler, steps, device)
    x_t: Tensor = randn_tensor((len(generators), *shape), generator=generators, device=device)
    x_t = x_t * sampler.init_noise_sigma
    noise = {} if isinstance(sampler, DDIMScheduler) else {"generator": generators}
    for t in sampler.timesteps:
        x_in = sampler.scale_model_input(x_t, t)
        output = predict(model, x_in, t.expand(len(x_in)), labels)
        x_t = sampler.step(output.float(), t, x_t, return_dict=False, **noise)[0]
    model.train(was_training)
    return x_t
