"""Drawing images from a diffusion model with diffusers' schedulers."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from fedddpm_app.config import Sampler
from fedddpm_app.diffusion.images import to_uint8
from fedddpm_app.diffusion.objective import predict
from fedddpm_app.seeding import derive_seed

# lambda_min_clipped is what diffusers asks for with the cosine schedule, whose last step has almost no signal.
SAMPLERS: dict[Sampler, tuple[type[Any], dict[str, Any]]] = {
    "ddpm": (DDPMScheduler, {}),
    "ddim": (DDIMScheduler, {"timestep_spacing": "trailing"}),
    "dpm-solver++": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "timestep_spacing": "trailing", "lambda_min_clipped": -5.1},
    ),
}


def create_sampler(scheduler: DDPMScheduler, sampler: Sampler) -> Any:
    """Create the sampling scheduler that reverses ``scheduler``'s forward process.

    Predicted images are clipped to [-1, 1] at every step where ``scheduler`` says ``clip_sample``.
    """
    kind, options = SAMPLERS[sampler]
    if sampler == "dpm-solver++":  # its name for clipping: thresholding with a maximum of 1
        options = {**options, "thresholding": scheduler.config.clip_sample, "sample_max_value": 1.0}
    return kind.from_config(scheduler.config, **options)


@torch.no_grad()
def sample_images(
    model: nn.Module,
    scheduler: DDPMScheduler,
    *,
    sampler: Sampler,
    steps: int,
    seeds: list[int],
    shape: tuple[int, int, int],
    labels: Tensor | None = None,
    batch_size: int = 256,
    on_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """Draw one image per seed.

    Image k depends on the model, the sampler and ``seeds[k]`` alone: every image has its own generator,
    and every batch has the same shape (the last one is filled up), so the result does not change with
    what else is drawn.

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
        Denoising steps, in [1, T].
    seeds : list of int
        One per image, see ``image_seeds``.
    shape : (int, int, int)
        Channels, height, width of an image, pixels.
    labels : Tensor, optional
        int64, shape (N,), the class of each image for a conditional model.
    batch_size : int
        Images per model call, >= 1.
    on_batch : callable, optional
        Called after each batch with the number of images drawn so far.

    Returns
    -------
    Tensor
        uint8 on the CPU, shape (N, C, H, W).
    """
    was_training = model.training
    model.eval()
    parts = []
    drawn = 0
    for index in _constant_batches(len(seeds), batch_size):
        part_labels = None if labels is None else labels[index]
        generators = [torch.Generator().manual_seed(seeds[k]) for k in index.tolist()]
        images = _reverse(model, create_sampler(scheduler, sampler), steps, generators, shape, part_labels)
        kept = min(batch_size, len(seeds) - drawn)
        parts.append(to_uint8(images[:kept]).cpu())
        drawn += kept
        if on_batch is not None:
            on_batch(drawn)
    model.train(was_training)
    return torch.cat(parts) if parts else torch.empty((0, *shape), dtype=torch.uint8)


def image_seeds(seed: int, purpose: str, count: int, *indices: int) -> list[int]:
    """Return the seeds of images 0 .. ``count`` - 1 of a purpose (see ``derive_seed``)."""
    return [derive_seed(seed, purpose, *indices, k) for k in range(count)]


def _constant_batches(count: int, batch_size: int) -> Iterator[Tensor]:
    """Yield index batches of one shape that cover ``range(count)``; the last one repeats its last index."""
    size = min(batch_size, count) or 1
    for start in range(0, count, size):
        yield torch.arange(start, start + size).clamp_(max=count - 1)


def _reverse(
    model: nn.Module,
    sampler: Any,
    steps: int,
    generators: list[torch.Generator],
    shape: tuple[int, int, int],
    labels: Tensor | None,
) -> Tensor:
    device = next(model.parameters()).device
    labels = None if labels is None else labels.to(device)
    sampler.set_timesteps(steps, device=device)
    x_t: Tensor = randn_tensor((len(generators), *shape), generator=generators, device=device)
    x_t = x_t * sampler.init_noise_sigma
    noise = {} if isinstance(sampler, DDIMScheduler) else {"generator": generators}
    for t in sampler.timesteps:
        x_in = sampler.scale_model_input(x_t, t)
        output = predict(model, x_in, t.expand(len(x_in)), labels)
        x_t = sampler.step(output.float(), t, x_t, return_dict=False, **noise)[0]
    return x_t
