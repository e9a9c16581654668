"""The model of a run that is exported, as a pipeline in a folder of its own, with a sheet of its images."""

import inspect
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedddpm_app.config import Config, ConfigError, first_line
from fedddpm_app.diffusion.choice import choose_sampler
from fedddpm_app.diffusion.conditional import create_pipeline, guidance_for, num_classes
from fedddpm_app.diffusion.ensemble import name_of
from fedddpm_app.diffusion.labels import class_rows
from fedddpm_app.diffusion.pipelines import find_pipelines, is_plain, load_pipeline, pipeline_batches
from fedddpm_app.diffusion.sampling import image_seeds, sampler_name
from fedddpm_app.recording.samples import save_samples

SAMPLES = "samples.png"
_MOST_CLASSES = 20  # on the sheet
_BATCH_SIZE = 100


def find_model(run_dir: Path, client: int | None) -> tuple[str, Path]:
    """Return the name and the pipeline folder of the model to export; the name is empty for a global model.

    Parameters
    ----------
    run_dir : Path
        The run directory.
    client : int or None
        The client whose own model is meant, in a run without a global model.

    Raises
    ------
    ConfigError
        When the run has no such model, or has several of which none is chosen.
    """
    found = find_pipelines(run_dir)
    if not found:
        raise ConfigError(f"RUN = {run_dir}: there is no pipeline in it; give the directory of a completed run.")
    if "" in found:
        if client is not None:
            raise ConfigError(f"--client {client}: the run has one model for all clients; leave the option out.")
        return "", found[""]
    if client is None:
        raise ConfigError(
            f"RUN = {run_dir}: it has no global model, but one for each of {len(found)} clients: name one, such as "
            f"--client {int(next(iter(found)).removeprefix('client-'))}."
        )
    if name_of(client) not in found:
        raise ConfigError(f"--client {client}: the run has models of {', '.join(found)}.")
    return name_of(client), found[name_of(client)]


def load_model(folder: Path, config: Config) -> Any:
    """Return the pipeline to export: a plain ``DDPMPipeline``, or a ``ClassConditionalPipeline``.

    Raises
    ------
    ConfigError
        When the folder holds something else than a run of this config leaves there.
    """
    pipeline = load_pipeline(folder)
    if not is_plain(pipeline):
        raise ConfigError(f"{folder} is not the pipeline of a run, a UNet2DModel on pixels with a scheduler.")
    try:
        pipeline = create_pipeline(_known(pipeline.unet), _known(pipeline.scheduler), config)
    except ValueError as error:
        raise ConfigError(f"{folder} does not fit the config.json of its run: {first_line(error)}.") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _known(part: Any) -> Any:
    """Return a model or scheduler whose config has the settings of its class alone: no path, and no other texts."""
    settings = inspect.signature(type(part).__init__).parameters
    made = type(part).from_config({key: value for key, value in part.config.items() if key in settings})
    if isinstance(part, nn.Module):
        made.load_state_dict(part.state_dict())
        made.eval()
    return made


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make a folder for an export, and remove it again if the body fails.

    Raises
    ------
    ConfigError
        When there is something already, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(f"DIR = {folder} is there already: give a new folder.") from error
    except OSError as error:
        raise ConfigError(f"DIR = {folder} cannot be made ({error.strerror}): give another folder.") from error
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def save_sheet_of(pipeline: Any, path: Path, config: Config, count: int, class_names: list[str]) -> None:
    """Write a sheet of images of the model, by the run's final sampler and seed, of at most 20 classes."""
    evaluation, eta = config.evaluation, config.diffusion.ddim_eta
    sampler, steps = choose_sampler(pipeline, evaluation.eval_final_sampler, None, evaluation.eval_final_sampler_steps)
    classes, guidance = num_classes(pipeline), guidance_for(pipeline, None)
    labels = None if classes is None else class_rows(min(classes, _MOST_CLASSES), count)
    count = count if labels is None else len(labels)
    batches = pipeline_batches(
        pipeline,
        sampler=sampler,
        steps=steps,
        seeds=image_seeds(config.run.seed, "export", count),
        labels=labels,
        batch_size=_BATCH_SIZE,
        eta=eta,
        guidance=guidance,
    )
    name = sampler_name(evaluation.eval_final_sampler, eta, guidance)
    save_samples(torch.cat([*batches]), path, f"Generated: {name}, {steps} steps", labels, class_names)
