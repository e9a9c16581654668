"""`fedddpm sample`: generate a sheet of new images with the model of a completed run."""

from pathlib import Path
from typing import Any

import torch
import typer

from fedddpm_app.cli.common import FAILED, console, refuse, say
from fedddpm_app.config import ConfigError
from fedddpm_app.device import resolve_device
from fedddpm_app.diffusion.choice import choose_sampler
from fedddpm_app.diffusion.images import DivergedError
from fedddpm_app.diffusion.pipelines import (
    OWN,
    find_pipelines,
    is_plain,
    load_pipeline,
    num_classes,
    pipeline_batches,
)
from fedddpm_app.diffusion.sampling import image_seeds
from fedddpm_app.experiment.monitor import class_rows
from fedddpm_app.recording.files import RecordingError, writing
from fedddpm_app.recording.samples import save_samples

_OURS, _STEPS = "dpm-solver++", 25
_BATCH_SIZE = 256


def sample(
    run_dir: Path,
    num_images: int,
    sampler: str | None,
    steps: int | None,
    seed: int,
    device: str,
    out: Path | None,
) -> None:
    """Generate and write a sheet; ``commands.sample`` describes the arguments."""
    if out is not None and out.suffix.lower() != ".png":
        refuse(f"--out {out} is not a PNG file: give a name that ends in .png.")
    try:
        pipeline = _load(run_dir)
        name, steps = choose_sampler(pipeline, sampler or (_OURS if is_plain(pipeline) else OWN), steps, _STEPS)
        pipeline = pipeline.to(resolve_device(device))
        classes = num_classes(pipeline)
        labels = None if classes is None else class_rows(classes, num_images)
        count = num_images if labels is None else len(labels)
        with console.status("generating"):
            seeds = image_seeds(seed, "sample", count)
            batches = pipeline_batches(
                pipeline, sampler=name, steps=steps, seeds=seeds, labels=labels, batch_size=_BATCH_SIZE
            )
            images = torch.cat([*batches])
    except (ConfigError, DivergedError) as error:
        refuse(str(error))
    if images.shape[1] not in (1, 3):
        refuse(f"RUN = {run_dir}: its images have {images.shape[1]} channels; give a pipeline of grey or RGB images.")
    path = out or (run_dir / "samples" / f"sample-{name or OWN}-{steps}-seed{seed}.png")
    try:
        with writing(path):
            caption = f"{run_dir.resolve().name}: {name or OWN}, {steps} steps, seed {seed}"
            save_samples(images, path, caption, labels, class_names=[])
    except RecordingError as error:
        say(str(error))
        raise typer.Exit(FAILED) from error
    say(f"{count} images: {path.resolve()}")


def _load(run_dir: Path) -> Any:
    folders = find_pipelines(run_dir)
    if not folders:
        raise ConfigError(f"RUN = {run_dir}: there is no pipeline in it; give the directory of a completed run.")
    if len(folders) > 1 or "" not in folders:
        first = next(iter(folders.values()))
        raise ConfigError(
            f"RUN = {run_dir}: it holds a model for each of {len(folders)} clients; give the folder of one model, such "
            f"as {first}."
        )
    return load_pipeline(folders[""])
