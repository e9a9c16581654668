"""Pipelines in folders, in the format of diffusers: ours and others."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from torch import Tensor

from fedddpm_app.config import ConfigError, Sampler, first_line
from fedddpm_app.diffusion.images import to_uint8
from fedddpm_app.diffusion.sampling import sample_batches
from fedddpm_app.diffusion.unet import is_denoiser

OWN = "pipeline"  # a sampler name that means the pipeline's own scheduler and call
_UNLOADABLE = (OSError, ValueError, TypeError, AttributeError, KeyError, ImportError, RuntimeError)


def find_pipelines(folder: Path) -> dict[str, Path]:
    """Return the pipeline folders of a run directory, or a pipeline folder itself, by name.

    The name is empty for a single pipeline, otherwise it is the client's. The result is empty without pipelines.
    """
    inner = folder / "pipeline" if (folder / "pipeline").is_dir() else folder
    if (inner / "model_index.json").is_file():
        return {"": inner}
    return {path.parent.name: path.parent for path in sorted(inner.glob("client-*/model_index.json"))}


def load_pipeline(folder: Path) -> Any:
    """Load a pipeline from a folder. Only weights in safetensors are read, and code in the folder is not run.

    Raises
    ------
    ConfigError
        When the pipeline cannot be loaded; the message gives the reason.
    """
    try:
        with _without_bars():
            pipeline = DiffusionPipeline.from_pretrained(
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
    parts = set(pipeline.components)
    return parts == {"unet", "scheduler"} and is_denoiser(pipeline.unet) and _has_betas(pipeline)


def pipeline_batches(
    pipeline: Any, *, sampler: Sampler | None, steps: int, seeds: Sequence[int], labels: Tensor | None, batch_size: int
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
    )


def image_shape(pipeline: Any, steps: int) -> tuple[int, int, int]:
    """Return channels, height and width of a pipeline's images.

    A pipeline that is not plain generates one image in ``steps`` steps for this.
    """
    if is_plain(pipeline):
        config = pipeline.unet.config
        height, width = _pair(config.sample_size)
        return int(config.in_channels), height, width
    images = _call(pipeline, steps, [0])
    return images.shape[1], images.shape[2], images.shape[3]


def default_steps(pipeline: Any) -> int | None:
    """Return the default number of denoising steps of a pipeline's call; None if it has no default."""
    parameter = inspect.signature(pipeline.__call__).parameters.get("num_inference_steps")
    return parameter.default if parameter is not None and isinstance(parameter.default, int) else None


def num_classes(pipeline: Any) -> int | None:
    """Return the number of classes of a class-conditional UNet; None for an unconditional pipeline."""
    config = getattr(getattr(pipeline, "unet", None), "config", {})
    classes: int | None = config.get("num_class_embeds")
    return classes


def _call(pipeline: Any, steps: int, seeds: Sequence[int]) -> Tensor:
    """Call an unconditional pipeline for one image per seed."""
    if "batch_size" not in inspect.signature(pipeline.__call__).parameters:
        raise ConfigError(
            f"{type(pipeline).__name__} needs more inputs than a number of images: only unconditional pipelines can be "
            "evaluated."
        )
    device = pipeline.device if pipeline.device.type == "cuda" else torch.device("cpu")
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    options = {"batch_size": len(seeds), "generator": generators, "num_inference_steps": steps}
    try:
        images = pipeline(**options, output_type="np").images
    except (ValueError, TypeError, LookupError, RuntimeError) as error:
        raise ConfigError(
            f"{type(pipeline).__name__} does not generate images in {steps} steps ({error}): use another number of "
            "steps, or a sampler."
        ) from error
    return to_uint8(torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1).contiguous()


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


def _has_betas(pipeline: Any) -> bool:
    return hasattr(pipeline.scheduler, "betas") and "num_train_timesteps" in pipeline.scheduler.config


def _pair(size: Any) -> tuple[int, int]:
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))
