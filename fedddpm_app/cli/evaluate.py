"""`fedddpm evaluate`: all metrics of a run's final model, or of any diffusers pipeline."""

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fedddpm_app.cli.common import console, refuse, say
from fedddpm_app.cli.result_tables import print_metrics
from fedddpm_app.cli.work_view import WorkView
from fedddpm_app.cli.writing import failing_to_write
from fedddpm_app.config import MAX_CLASSES, Config, ConfigError, load_saved
from fedddpm_app.data.dataset import open_dataset
from fedddpm_app.data.probe import look_at
from fedddpm_app.device import cpu_threads, resolve_device
from fedddpm_app.diffusion.choice import check_eta, choose_sampler
from fedddpm_app.diffusion.conditional import guidance_for, num_classes
from fedddpm_app.diffusion.ensemble import PipelineEnsemble, find_ensembles
from fedddpm_app.diffusion.images import DivergedError
from fedddpm_app.diffusion.labels import labels_like
from fedddpm_app.diffusion.pipelines import (
    OWN,
    default_steps,
    image_shape,
)
from fedddpm_app.diffusion.sampling import image_seeds, sampler_name
from fedddpm_app.evaluation.evaluator import Evaluation, Evaluator
from fedddpm_app.evaluation.metrics import Metric, SamplingInfo, mean_over_clients
from fedddpm_app.experiment.evaluators import create_evaluator, without_partition
from fedddpm_app.progress import logger, reported
from fedddpm_app.recording.files import write_json, writing
from fedddpm_app.recording.layout import CONFIG, STATS
from fedddpm_app.recording.plots import plot_classes
from fedddpm_app.recording.reading import changed_data, run_config_of
from fedddpm_app.recording.sheets import save_pairs

_CHANNELS: dict[int, Literal[1, 3]] = {1: 1, 3: 3}


class _How(NamedTuple):
    """How images are generated; None is the default of the pipeline or of the run."""

    sampler: str
    steps: int | None
    guidance: float | None
    seed: int


def evaluate(
    target: Path,
    dataset: str | None,
    num_images: int,
    reference: str | None,
    extractor: str | None,
    inception_weights: str | None,
    sampler: str | None,
    steps: int | None,
    eta: float | None,
    guidance: float | None,
    batch_size: int | None,
    seed: int | None,
    threads: int | None,
    device: str,
    cache_dir: str | None,
    out: Path | None,
) -> None:
    """Generate, measure and write; ``commands.evaluate`` describes the arguments."""
    given = {
        "eval-reference": reference,
        "eval-extractor": extractor,
        "inception-weights": inception_weights,
        "eval-batch-size": batch_size,
        "ddim-eta": eta,
        "device": device,
        "cache-dir": cache_dir or "",  # a delivered run chooses no folder of this host
    }
    try:
        ensembles = find_ensembles(target)
        if not ensembles:
            raise ConfigError(
                f"RUN_OR_PIPELINE = {target}: there is no pipeline in it; give the folder of a completed run or of a "
                "pipeline."
            )
        run_config = _run_config(target)
        path = _writable(out or (target if run_config else Path()) / "evaluation.json")
        options = {key: value for key, value in given.items() if value is not None}
        config = _config(run_config, next(iter(ensembles.values())).first(), dataset, options, steps)
        seed = config.run.seed if seed is None else seed
        sampler = sampler or (config.evaluation.eval_final_sampler if run_config else OWN)
        check_eta(eta, sampler)
        threads = threads or (config.run.server_threads if run_config else None)
        evaluations = {}
        with WorkView(console), cpu_threads(threads) if threads else nullcontext():
            evaluator = create_evaluator(config)
            if run_config and dataset in (None, run_config.get("dataset")):
                _warn_of_changes(target, config)
            for name, ensemble in ensembles.items():
                weights = "pretrained" if ensemble.of_clients else _weights(run_config, name)
                how = _How(sampler, steps, guidance, seed)
                evaluations[name] = _measure(evaluator, ensemble, config, num_images, how, weights)
    except (ConfigError, DivergedError) as error:
        refuse(str(error))
    metrics = [metric.to_dict() for metric in _means(evaluations)]
    print_metrics(metrics, console)
    about = {"target": str(target.resolve()), "dataset": config.data.dataset, "seed": seed}
    with failing_to_write():
        write_json(path, {**about, "metrics": metrics})
        for name, evaluation in evaluations.items():
            with writing(path.parent):
                _save_pictures(evaluation, evaluator, path, name)
    say(f"metrics: {path.resolve()}")


def _warn_of_changes(run_dir: Path, config: Config) -> None:
    """Warn if the images are not those of the run: its metrics were others then, as is the memorized share."""
    for name in {"train", "test"} & {*changed_data(run_dir, open_dataset(config.data, config.run.seed).split_digests)}:
        logger.warning("the %s images are not those that the run began with: its own metrics were of others", name)


def _means(evaluations: Mapping[str, Evaluation]) -> list[Metric]:
    return mean_over_clients({name: evaluation.metrics for name, evaluation in evaluations.items()})


def _run_config(target: Path) -> dict[str, Any]:
    """Return the run config of a run directory; empty for any other folder."""
    path = target / CONFIG
    if not path.is_file() or not (target / STATS).is_file():
        return {}
    return run_config_of(target)


def _writable(path: Path) -> Path:
    """Check that a path can be written, and return it; this comes first, because generating images takes long."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {path} cannot be written ({error.strerror}): give another file.") from error
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"--out {path} cannot be written: give a file in a writable folder.")
    return path


def _config(
    run_config: dict[str, Any], pipeline: Any, dataset: str | None, options: dict[str, Any], steps: int | None
) -> Config:
    """Return the run's config, or a config for the pipeline's images, with the options applied."""
    config = load_saved(run_config, options)
    if run_config and dataset in (None, config.data.dataset):
        return config
    if dataset is None:
        raise ConfigError("--dataset is missing: give the real images to compare with, such as path:/abs/folder.")
    channels, height, width = image_shape(pipeline, steps or default_steps(pipeline) or 1)
    if height != width or channels not in _CHANNELS:
        raise ConfigError(
            f"the images are {height}x{width}x{channels}: only square grey or RGB images can be compared; give a "
            "pipeline of such images."
        )
    data = replace(config.data, dataset=dataset, image_size=height, image_channels=_CHANNELS[channels])
    classes = num_classes(pipeline)
    data = replace(data, num_classes=classes or MAX_CLASSES, class_conditional=classes is not None)
    config = without_partition(replace(config, data=data))
    facts, size = look_at(config.data), (width, height, channels)
    if facts and (facts.width, facts.height, facts.image_channels) != size:
        say(f'dataset = "{dataset}": {facts}, compared as {width}x{height}x{channels}, as the pipeline generates')
    return config


def _weights(run_config: dict[str, Any], client: str) -> str:
    """Return the kind of weights in a pipeline: ema, raw, or stored if unknown; a single client's model has no EMA."""
    if not run_config:
        return "stored"
    return "ema" if run_config.get("server-ema-decay") and not client else "raw"


def _measure(
    evaluator: Evaluator,
    ensemble: PipelineEnsemble,
    config: Config,
    num_images: int,
    how: _How,
    weights: str,
) -> Evaluation:
    """Generate images and measure them; only the features stay in memory."""
    pipeline, eta = ensemble.first(), config.diffusion.ddim_eta
    ours, steps = choose_sampler(pipeline, how.sampler, how.steps, config.evaluation.eval_final_sampler_steps)
    guidance = guidance_for(pipeline, how.guidance)
    conditional = num_classes(pipeline) is not None
    batches = ensemble.sample(
        resolve_device(config.run.device),
        sampler=ours,
        steps=steps,
        seeds=image_seeds(how.seed, "evaluate", num_images),
        labels=labels_like(evaluator.reference.images.labels, num_images) if conditional else None,
        batch_size=config.evaluation.eval_batch_size,
        eta=eta,
        guidance=guidance,
    )
    sampling = SamplingInfo(sampler_name(ours, eta, guidance) if ours else OWN, steps, weights)
    return evaluator.measure(reported((images for _, images in batches), "evaluate", num_images), sampling)


def _save_pictures(evaluation: Evaluation, evaluator: Evaluator, path: Path, name: str) -> None:
    """Plot the classes and the closest pairs into the folder of the JSON file."""
    stem = f"{path.stem}{name and '-'}{name}"
    if evaluation.classes:
        class_names = evaluator.reference.real.class_names
        plot_classes(evaluation.classes.to_dict(), class_names, path.with_name(f"{stem}-classes.png"), name)
    if evaluation.pairs is not None:
        pairs = evaluation.pairs
        threshold, picture = evaluator.detector.threshold, path.with_name(f"{stem}-closest-pairs.png")
        save_pairs(pairs.generated, pairs.train, pairs.ratio, threshold, picture, name)
