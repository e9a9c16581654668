"""`fedddpm evaluate`: full figures of a run's final model, or of any diffusers pipeline."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fedddpm_app.assessment import labels_like
from fedddpm_app.cli.common import DeviceOption, console, refuse, say
from fedddpm_app.config import Config, ConfigError, check_sampler, default_run_config, known_keys, load_config
from fedddpm_app.console import WorkView, print_figures
from fedddpm_app.device import resolve_device
from fedddpm_app.diffusion.pipelines import (
    OWN,
    find_pipelines,
    image_shape,
    is_plain,
    load_pipeline,
    pipeline_batches,
)
from fedddpm_app.diffusion.sampling import SAMPLERS, image_seeds
from fedddpm_app.evaluation.evaluator import Evaluation, Evaluator
from fedddpm_app.evaluation.extractors import EXTRACTORS
from fedddpm_app.evaluation.figures import Drawing, mean_over_clients
from fedddpm_app.measuring import create_evaluator, without_partition
from fedddpm_app.progress import reported
from fedddpm_app.recording.plots import plot_classes
from fedddpm_app.recording.recorder import write_json
from fedddpm_app.recording.sheets import save_pairs

_ANY_NUMBER_OF_CLASSES = 2**31
_SEEDS = 2**32
_CHANNELS: dict[int, Literal[1, 3]] = {1: 1, 3: 3}


@dataclass(frozen=True)
class Drawn:
    """What the options say about drawing."""

    num_images: int
    sampler: str
    steps: int
    seed: int
    weights: str


def evaluate(
    target: Annotated[Path, typer.Argument(metavar="RUN_OR_PIPELINE", help="A run directory, or a pipeline folder.")],
    dataset: Annotated[str, typer.Option(help="As the key `dataset`; default: the run's.")] = "",
    num_images: Annotated[int, typer.Option(min=2, help="Images to generate.")] = 2000,
    reference: Annotated[str, typer.Option(help="Real images to compare with: test | train")] = "test",
    extractor: Annotated[str, typer.Option(help=" | ".join(EXTRACTORS))] = "auto",
    inception_weights: Annotated[str, typer.Option(help="torch-fidelity's file; with it the figures are FID.")] = "",
    sampler: Annotated[
        str, typer.Option(help=f"{' | '.join(SAMPLERS)} | {OWN}; default: the run's, else the pipeline's own.")
    ] = "",
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 50,
    batch_size: Annotated[int, typer.Option(min=1, help="Images drawn at a time.")] = 250,
    seed: Annotated[int, typer.Option(min=0, max=_SEEDS - 1)] = 0,
    device: DeviceOption = "auto",
    cache_dir: Annotated[str, typer.Option(help="As the key `cache-dir`.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="JSON to write; default: evaluation.json in the run, else in this folder.")
    ] = None,
) -> None:
    """Measure generated images against real ones: a table, a JSON file, plots beside it."""
    try:
        folders = find_pipelines(target)
        if not folders:
            raise ConfigError(f"RUN_OR_PIPELINE = {target}: there is no pipeline in it; give a completed run's folder.")
        run_config = _run_config(target)
        pipelines = {name: load_pipeline(folder).to(resolve_device(device)) for name, folder in folders.items()}
        changes = {"eval_reference": reference, "eval_extractor": extractor, "inception_weights": inception_weights}
        config = _config(run_config, next(iter(pipelines.values())), dataset, device, cache_dir, changes)
        drawn = Drawn(num_images, sampler or _default_sampler(config, run_config), steps, seed, _weights(run_config))
        with WorkView(console):
            evaluator = create_evaluator(config)
            evaluations = {
                name: _measure(evaluator, pipeline, drawn, batch_size) for name, pipeline in pipelines.items()
            }
    except ConfigError as error:
        refuse(str(error))
    figures = [figure.to_dict() for figure in mean_over_clients([each.figures for each in evaluations.values()])]
    path = out or (target if run_config else Path()) / "evaluation.json"
    write_json(
        path, {"target": str(target.resolve()), "dataset": config.data.dataset, "seed": seed, "figures": figures}
    )
    print_figures(figures, console)
    for name, evaluation in evaluations.items():
        _save_pictures(evaluation, path, name)
    say(f"figures: {path.resolve()}")


def _run_config(target: Path) -> dict[str, Any]:
    """Return the run config of a run directory; empty for another folder."""
    path = target / "config.json"
    if not path.is_file() or not (target / "stats.jsonl").is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["run_config"])
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); give the folder of a run.") from error


def _config(
    run_config: dict[str, Any], pipeline: Any, dataset: str, device: str, cache_dir: str, changes: dict[str, str]
) -> Config:
    """Return the run's config, or one for the pipeline's images, with the options put in."""
    defaults = default_run_config()
    options = {"device": device} | ({"cache-dir": cache_dir} if cache_dir else {})
    options |= {key.replace("_", "-"): value for key, value in changes.items()}
    known = {key: value for key, value in run_config.items() if key in known_keys()}
    config = load_config(defaults | known | options)
    if run_config and dataset in ("", config.data.dataset):
        return config
    if not (dataset or run_config):
        raise ConfigError("--dataset is missing: say what the images are compared with, such as path:/abs/folder.")
    channels, height, width = image_shape(pipeline)
    if height != width or channels not in _CHANNELS:
        raise ConfigError(f"the images are {height}x{width}x{channels}: only square grey or RGB images are compared.")
    conditional = bool(getattr(getattr(pipeline, "unet", None), "config", {}).get("num_class_embeds"))
    data = replace(config.data, dataset=dataset, image_size=height, image_channels=_CHANNELS[channels])
    data = replace(data, num_classes=_ANY_NUMBER_OF_CLASSES, class_conditional=conditional)
    return without_partition(replace(config, data=data))


def _default_sampler(config: Config, run_config: dict[str, Any]) -> str:
    return config.evaluation.eval_final_sampler if run_config else OWN


def _weights(run_config: dict[str, Any]) -> str:
    """Return which weights the pipeline holds, as far as that is known."""
    if not run_config:
        return "stored"
    return "ema" if run_config.get("server-ema-decay") else "raw"


def _measure(evaluator: Evaluator, pipeline: Any, drawn: Drawn, batch_size: int) -> Evaluation:
    """Draw and measure; memory grows with the features only."""
    sampler = next((name for name in SAMPLERS if name == drawn.sampler), None)
    if sampler is None and drawn.sampler != OWN:
        raise ConfigError(f"--sampler {drawn.sampler} is not known: use one of {', '.join([*SAMPLERS, OWN])}.")
    classes = getattr(getattr(pipeline, "unet", None), "config", {}).get("num_class_embeds")
    if is_plain(pipeline) and (sampler is not None or classes):
        sampler = sampler or "ddim"
        check_sampler("--steps", sampler, drawn.steps, pipeline.scheduler.config.num_train_timesteps)
    elif sampler is not None:
        raise ConfigError(f"--sampler {sampler} is for a UNet2DModel with betas: use --sampler {OWN}.")
    labels = labels_like(evaluator.reference.images.labels, drawn.num_images) if classes else None
    batches = pipeline_batches(
        pipeline,
        sampler=sampler,
        steps=drawn.steps,
        seeds=image_seeds(drawn.seed, "evaluate", drawn.num_images),
        labels=labels,
        batch_size=batch_size,
    )
    drawing = Drawing(sampler or OWN, drawn.steps, drawn.weights)
    return evaluator.measure(reported(batches, "evaluate", drawn.num_images), drawing)


def _save_pictures(evaluation: Evaluation, path: Path, name: str) -> None:
    """Draw the classes and the closest pairs beside the JSON file."""
    stem = f"{path.stem}{name and '-'}{name}"
    if evaluation.class_counts:
        plot_classes(evaluation.class_counts, path.with_name(f"{stem}-classes.png"))
    if evaluation.pairs is not None:
        pairs = evaluation.pairs
        save_pairs(pairs.generated, pairs.train, path.with_name(f"{stem}-closest-pairs.png"))
