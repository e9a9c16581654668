"""Sample images from a diffusion model with diffusers' schedulers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from fedddpm_app.config import Sampler
from fedddpm_app.diffusion.guidance import Guidance
from fedddpm_app.diffusion.images import to_uint8
from fedddpm_app.diffusion.reverse import denoise
from fedddpm_app.seeding import derive_seed


class ClippingDPMSolver(DPMSolverMultistepScheduler):  # type: ignore[misc]
    """diffusers' solver, with thresholding to [-1, 1] replaced by the equivalent clipping.

    diffusers' thresholding sorts every image for a quantile, which a maximum of 1 then overrides.
    """

    def _threshold_sample(self, sample: Tensor) -> Tensor:
        return sample.clamp(-1.0, 1.0)


_SIGMA_GRIDS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas")
_OWN_TIMESTEPS = dict.fromkeys(_SIGMA_GRIDS, False)  # a pipeline's grids cannot be combined with given timesteps
SAMPLERS: dict[Sampler, tuple[type[Any], dict[str, Any]]] = {
    "ddpm": (DDPMScheduler, {}),
    "ddim": (DDIMScheduler, {"timestep_spacing": "trailing"}),
    "dpm-solver++": (ClippingDPMSolver, {"algorithm_type": "dpmsolver++", **_OWN_TIMESTEPS}),
}
_MIN_LAMBDA = -5.1  # lowest log(alpha_t / sigma_t) where DPM-Solver++ starts; leaves out the cosine schedule's last t


def sampler_name(sampler: Sampler, eta: float, guidance: Guidance | None = None) -> str:
    """Return the name of a sampler for captions and metrics, with ``eta`` if it adds noise by it, and the guidance."""
    noise = f", eta = {eta:g}" if eta and sampler == "ddim" else ""
    return f"{sampler}{noise}" + (f", guidance = {guidance.scale:g}" if guidance else "")


def create_sampler(scheduler: DDPMScheduler, sampler: Sampler) -> Any:
    """Create the sampling scheduler that reverses ``scheduler``'s forward process.

    If ``scheduler`` has ``clip_sample``, predicted images are clipped to [-1, 1] at every step.
    """
    kind, options = SAMPLERS[sampler]
    if sampler == "dpm-solver++":  # it has no clipping, but thresholding with a maximum of 1
        options = {**options, "thresholding": scheduler.config.get("clip_sample", True), "sample_max_value": 1.0}
    betas = scheduler.betas.tolist()  # some sampling schedulers do not know all beta schedules by name
    return kind.from_config(scheduler.config, trained_betas=betas, **options)


def set_timesteps(sampler: Any, steps: int, device: torch.device) -> None:
    """Set the timesteps of a sampling scheduler, evenly spaced from the noisiest timestep down ("trailing").

    Lin et al. 2024 (arXiv 2305.08891) show why sampling must start at T - 1. diffusers' grids start there only
    with "trailing" spacing and only if ``steps`` divides T; otherwise they repeat timesteps or end at t = -1.

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
    """Return ``steps`` timesteps in [0, ``total``), strictly decreasing from ``total`` - 1, evenly spaced."""
    return [total - 1 - k * total // steps for k in range(steps)]


def sample_images(
    model: nn.Module,
    scheduler: DDPMScheduler,
    *,
    shape: tuple[int, int, int],
    **options: Any,
) -> Tensor:
    """Sample one image per seed, and return all of them.

    Parameters
    ----------
    model, scheduler, shape
        As of ``sample_batches``.
    **options
        The other arguments of ``sample_batches``.

    Returns
    -------
    Tensor
        uint8 on the CPU, shape (N, C, H, W).
    """
    empty = torch.empty((0, *shape), dtype=torch.uint8)
    return torch.cat([empty, *sample_batches(model, scheduler, shape=shape, **options)])


def sample_batches(
    model: nn.Module,
    scheduler: DDPMScheduler,
    *,
    seeds: Sequence[int],
    labels: Tensor | None = None,
    batch_size: int = 256,
    **options: Any,
) -> Iterator[Tensor]:
    """Sample one image per seed, a batch at a time, so that memory does not grow with the number of images.

    Image k depends only on the model, the sampler and ``seeds[k]``: every image has its own generator,
    and every batch has the same shape (the last batch is filled up). Only a change of that shape (another
    ``batch_size``, or fewer images than ``batch_size``) can change a pixel, through the rounding of a convolution.

    Parameters
    ----------
    model, scheduler, **options
        As of ``sample_batch``.
    seeds : list of int
        One per image, see ``image_seeds``.
    labels : Tensor, optional
        int64, shape (N,), the class of each image for a conditional model.
    batch_size : int
        Images per model call, >= 1.

    Yields
    ------
    Tensor
        uint8 on the CPU, shape (B, C, H, W).
    """
    for batch in split_batches(seeds, labels, min(batch_size, len(seeds)) or 1):
        yield sample_batch(model, scheduler, batch, **options)


@dataclass(frozen=True)
class SampleBatch:
    """The images of one constant-shape batch.

    Attributes
    ----------
    seeds : list of int
        One per image of the batch.
    labels : Tensor or None
        int64, one per seed.
    kept : int
        The number of images to keep, from the first; the others only fill up the batch.
    """

    seeds: list[int]
    labels: Tensor | None
    kept: int


def split_batches(seeds: Sequence[int], labels: Tensor | None, size: int) -> list[SampleBatch]:
    """Split images into batches of ``size``; the last image fills up the last batch."""
    batches = []
    for start in range(0, len(seeds), size):
        index = torch.arange(start, start + size).clamp_(max=len(seeds) - 1)
        part_labels = None if labels is None else labels[index]
        batches.append(SampleBatch([seeds[k] for k in index.tolist()], part_labels, min(size, len(seeds) - start)))
    return batches


def sample_batch(
    model: nn.Module,
    scheduler: DDPMScheduler,
    batch: SampleBatch,
    *,
    sampler: Sampler,
    steps: int,
    shape: tuple[int, int, int],
    eta: float = 0.0,
    guidance: Guidance | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Tensor:
    """Sample the images of one batch.

    Parameters
    ----------
    model : nn.Module
        A ``UNet2DModel``; its training mode is restored afterwards.
    scheduler : DDPMScheduler
        The forward process that it was trained with.
    batch : SampleBatch
        The seeds and labels of the images.
    sampler : {"ddpm", "ddim", "dpm-solver++"}
        ``ddpm`` is ancestral sampling (Ho et al. 2020), ``ddim`` is that of Song et al. 2021, ``dpm-solver++`` is the
        second-order multistep solver (Lu et al. 2022).
    steps : int
        Denoising steps, in [1, T]; for ``ddim`` a divisor of T.
    shape : (int, int, int)
        Channels, height, width of an image, pixels.
    eta : float
        In [0, 1], of ``ddim`` alone: the noise that a step adds has eta times the deviation of ancestral sampling
        (Song et al. 2021, eq. 16). With 0 the image follows from the first noise.
    guidance : Guidance, optional
        Of a batch with labels, for a model with a null class.
    precision : {"fp32", "bf16"}
        ``bf16`` autocasts the model's calls; the sampler's arithmetic stays float32.

    Returns
    -------
    Tensor
        uint8 on the CPU, shape (``batch.kept``, C, H, W).
    """
    device = next(model.parameters()).device
    reverse = create_sampler(scheduler, sampler)
    set_timesteps(reverse, steps, torch.device("cpu"))
    generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
    images = denoise(
        model,
        reverse,
        randn_tensor((len(generators), *shape), generator=generators, device=device),
        generators,
        labels=None if batch.labels is None else batch.labels.to(device),
        guidance=guidance,
        eta=eta,
        precision=precision,
    )
    return to_uint8(images[: batch.kept]).cpu()


def image_seeds(seed: int, purpose: str, count: int, *indices: int) -> list[int]:
    """Return the seeds of the images 0 to ``count`` - 1 for a purpose (see ``derive_seed``)."""
    return [derive_seed(seed, purpose, *indices, k) for k in range(count)]
