"""Pipelines in folders, in the format of diffusers: ours and others."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fedddpm_app.config import ConfigError, Sampler, first_line
from fedddpm_app.diffusion.conditional import ClassConditionalPipeline, height_and_width
from fedddpm_app.diffusion.guidance import Guidance
from fedddpm_app.diffusion.images import to_uint8
from fedddpm_app.diffusion.reverse import denoise
from fedddpm_app.diffusion.sampling import sample_batches
from fedddpm_app.diffusion.unet import is_denoiser
from fedddpm_app.diffusion.untrusted import INDEX, check_pipeline, class_name

PIPELINE = "pipeline"  # in a run directory, or a folder that was exported
OWN = "pipeline"  # a sampler name that means the pipeline's own scheduler and call
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_UNUSABLE = (ValueError, TypeError, LookupError, RuntimeError, AttributeError)
_UNLOADABLE = (OSError, ValueError, TypeError, AttributeError, KeyError, ImportError, RuntimeError)


def find_pipelines(folder: Path) -> dict[str, Path]:
    """Return the pipeline folders of a run directory, or a pipeline folder itself, by name.

    The name is empty for a single pipeline, otherwise it is the client's. The result is empty without pipelines.
    """
    inner = folder / PIPELINE if (folder / PIPELINE).is_dir() else folder
    if (inner / INDEX).is_file():
        return {"": inner}
    return {path.parent.name: path.parent for path in sorted(inner.glob(f"client-*/{INDEX}"))}


def load_pipeline(folder: Path) -> Any:
    """Load a pipeline of diffusers' classes, or of ours, from a folder.

    Only weights in safetensors are read, code in the folder is not run, and its configs state no larger models than its
    weights are.

    Raises
    ------
    ConfigError
        When the pipeline cannot be loaded; the message gives the reason.
    """
    try:
        check_pipeline(folder)
        with _without_bars():
            pipeline = _kind_of(folder).from_pretrained(
                str(folder), use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
            )
    except _UNLOADABLE as error:
        raise ConfigError(
            f"{folder} cannot be loaded as a diffusers pipeline ({first_line(error)}); it needs a model_index.json "
            "and weights in safetensors."
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def is_plain(pipeline: Any) -> bool:
    """Return whether a pipeline is a ``UNet2DModel`` on pixels with a scheduler that our samplers can replace."""
    return _is_unet_alone(pipeline) and _has_betas(pipeline) and _predicts_as_trained(pipeline)


def pipeline_batches(
    pipeline: Any,
    *,
    sampler: Sampler | None,
    steps: int,
    seeds: Sequence[int],
    labels: Tensor | None,
    batch_size: int,
    eta: float = 0.0,
    guidance: Guidance | None = None,
) -> Iterator[Tensor]:
    """Yield images, uint8 (B, C, H, W), one per seed.

    Parameters
    ----------
    pipeline : DiffusionPipeline
        On its device.
    sampler : {"ddpm", "ddim", "dpm-solver++"} or None
        Our sampler, for a pipeline that ``is_plain``; None calls the pipeline with its own scheduler.
    steps : int
        Denoising steps, >= 1.
    seeds : sequence of int
        One per image.
    labels : Tensor or None
        int64 (N,), for a class-conditional model; only with our samplers.
    batch_size : int
        Images per model call, >= 1.
    eta, guidance : float, Guidance or None
        As of ``sample_batch``; only with our samplers.
    """
    if sampler is None:
        for start in range(0, len(seeds), batch_size):
            yield _call(pipeline, steps, seeds[start : start + batch_size])
        return
    yield from sample_batches(
        pipeline.unet,
        pipeline.scheduler,
        sampler=sampler,
        steps=steps,
        seeds=seeds,
        shape=image_shape(pipeline, steps),
        labels=labels,
        batch_size=batch_size,
        eta=eta,
        guidance=guidance,
    )


def image_shape(pipeline: Any, steps: int) -> tuple[int, int, int]:
    """Return channels, height and width of a pipeline's images.

    A pipeline of other parts than a ``UNet2DModel`` and a scheduler generates one image in ``steps`` steps for this.
    """
    if _is_unet_alone(pipeline):
        config = pipeline.unet.config
        if config.sample_size is None:
            raise ConfigError("the pipeline's UNet does not give its image size: add sample_size to unet/config.json.")
        height, width = height_and_width(config.sample_size)
        return int(config.in_channels), height, width
    images = _call(pipeline, steps, [0])
    return images.shape[1], images.shape[2], images.shape[3]


def num_timesteps(pipeline: Any) -> int | None:
    """Return T, the diffusion steps of a pipeline's scheduler; None if its scheduler does not have this number."""
    config = getattr(getattr(pipeline, "scheduler", None), "config", {})
    total: int | None = config.get("num_train_timesteps")
    return total


def default_steps(pipeline: Any) -> int | None:
    """Return the default number of denoising steps of a pipeline's call, at most T; None if it has no default."""
    parameter = inspect.signature(pipeline.__call__).parameters.get("num_inference_steps")
    if parameter is None or not isinstance(parameter.default, int):
        return None
    return _possible_steps(pipeline, min(parameter.default, num_timesteps(pipeline) or parameter.default))


def _call(pipeline: Any, steps: int, seeds: Sequence[int]) -> Tensor:
    """Call an unconditional pipeline for one image per seed."""
    if "batch_size" not in inspect.signature(pipeline.__call__).parameters:
        raise ConfigError(
            f"{type(pipeline).__name__} needs more inputs than a number of images: only unconditional pipelines can be "
            "used."
        )
    _check_own_steps(pipeline, steps)
    if isinstance(pipeline, DDPMPipeline) and not isinstance(pipeline.scheduler, DDPMScheduler):
        return _denoise(pipeline, steps, seeds)
    device = pipeline.device if pipeline.device.type == "cuda" else torch.device("cpu")
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    options = {"batch_size": len(seeds), "generator": generators, "num_inference_steps": steps}
    try:
        images = pipeline(**options, output_type="np").images
    except _UNUSABLE as error:
        raise ConfigError(
            f"{type(pipeline).__name__} does not generate images in {steps} steps ({first_line(error)}): use "
            "another --steps, or another --sampler."
        ) from error
    return to_uint8(torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1).contiguous()


def _denoise(pipeline: Any, steps: int, seeds: Sequence[int]) -> Tensor:
    """Sample with a scheduler for which ``DDPMPipeline`` does not scale the noise and the model's input."""
    unet, scheduler = pipeline.unet, pipeline.scheduler
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = randn_tensor((len(seeds), *image_shape(pipeline, steps)), generator=generators, device=unet.device)
    try:
        scheduler.set_timesteps(steps, device="cpu")
        images = denoise(unet, scheduler, noise, generators)
    except _UNUSABLE as error:
        raise ConfigError(
            f"the pipeline's {type(scheduler).__name__} does not generate images in {steps} steps "
            f"({first_line(error)}): use another --steps, or another --sampler."
        ) from error
    return to_uint8(images).cpu()


def _kind_of(folder: Path) -> Any:
    """Return the class of the pipeline in a folder: ours, or any of diffusers'."""
    own = class_name(folder) == ClassConditionalPipeline.__name__
    return ClassConditionalPipeline if own else DiffusionPipeline


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hide diffusers' progress bar over its few files."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _check_own_steps(pipeline: Any, steps: int) -> None:
    total = num_timesteps(pipeline)
    if total is not None and steps > total:
        raise ConfigError(
            f"--steps = {steps} is more than the {total} diffusion steps of the pipeline's "
            f"{type(pipeline.scheduler).__name__}: use at most {total}."
        )
    possible = _possible_steps(pipeline, steps)
    if possible < steps:
        raise ConfigError(
            f"--steps = {steps} makes timesteps of the pipeline's {type(pipeline.scheduler).__name__} equal: use at "
            f"most {possible}."
        )


def _possible_steps(pipeline: Any, steps: int) -> int:
    """Return the largest number of at most ``steps`` steps that the pipeline's scheduler can take.

    A multistep solver divides by differences of its timesteps, but near T it rounds some of them to the same number.
    """
    scheduler = getattr(pipeline, "scheduler", None)
    if scheduler is None or "solver_order" not in scheduler.config:
        return steps
    solver = type(scheduler).from_config(scheduler.config)

    def are_distinct(count: int) -> bool:
        solver.set_timesteps(count)
        return len(solver.timesteps.unique()) == len(solver.timesteps)

    return next((count for count in range(steps, 1, -1) if are_distinct(count)), 1)


def _is_unet_alone(pipeline: Any) -> bool:
    return set(pipeline.components) == {"unet", "scheduler"} and is_denoiser(pipeline.unet)


def _has_betas(pipeline: Any) -> bool:
    known = hasattr(pipeline.scheduler, "betas") and hasattr(pipeline.scheduler, "alphas_cumprod")
    return known and num_timesteps(pipeline) is not None


def _predicts_as_trained(pipeline: Any) -> bool:
    """Return whether our samplers can use the model's output: no learned variance, and a known prediction type."""
    unet, scheduler = pipeline.unet.config, pipeline.scheduler.config
    known = scheduler.get("prediction_type", "epsilon") in _PREDICTIONS
    return bool(known and unet.in_channels == unet.out_channels)
