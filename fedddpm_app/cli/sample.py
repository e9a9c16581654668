"""`fedddpm sample`: generate a sheet of new images with the model of a completed run."""

from pathlib import Path
from typing import Any

import typer

from fedddpm_app.cli.common import FAILED, console, refuse, say
from fedddpm_app.config import ConfigError, Sampler, check_sampler
from fedddpm_app.device import resolve_device
from fedddpm_app.diffusion.images import DivergedError
from fedddpm_app.diffusion.pipelines import find_pipelines, image_shape, is_plain, load_pipeline
from fedddpm_app.diffusion.sampling import SAMPLERS, image_seeds, sample_images
from fedddpm_app.experiment.monitor import class_rows
from fedddpm_app.recording.files import RecordingError, writing
from fedddpm_app.recording.samples import save_samples


def sample(run_dir: Path, num_images: int, sampler: str, steps: int, seed: int, device: str, out: Path | None) -> None:
    """Generate and write a sheet; ``commands.sample`` describes the arguments."""
    name: Sampler | None = next((s for s in SAMPLERS if s == sampler), None)
    if name is None:
        refuse(f"--sampler {sampler} is not known: use one of {', '.join(SAMPLERS)}.")
    path = out or (run_dir / "samples" / f"sample-{name}-{steps}-seed{seed}.png")
    if path.suffix.lower() != ".png":
        refuse(f"--out {path} is not a PNG file: give a name that ends in .png.")
    try:
        pipeline = _load(run_dir)
        check_sampler("--steps", name, steps, pipeline.scheduler.config.num_train_timesteps)
        model = pipeline.unet.to(resolve_device(device))
    except ConfigError as error:
        refuse(str(error))
    classes = model.config.num_class_embeds
    labels = None if classes is None else class_rows(classes, num_images)
    count = num_images if labels is None else len(labels)
    try:
        with console.status("generating"):
            images = sample_images(
                model,
                pipeline.scheduler,
                sampler=name,
                steps=steps,
                seeds=image_seeds(seed, "sample", count),
                shape=image_shape(pipeline, steps),
                labels=labels,
            )
    except DivergedError as error:
        refuse(str(error))
    try:
        with writing(path):
            caption = f"{run_dir.resolve().name}: {name}, {steps} steps, seed {seed}"
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
    pipeline = load_pipeline(folders[""])
    if not is_plain(pipeline):
        raise ConfigError(
            f"RUN = {run_dir}: a {type(pipeline).__name__} does not hold a UNet2DModel with a scheduler of betas; give "
            "the folder of a completed run."
        )
    return pipeline
