"""The `fedddpm` command: run, sample."""

import importlib
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Never, TextIO

import click
import typer
from flwr.common.config import parse_config_args
from rich.console import Console

from fedddpm_app.algorithms import get_algorithm
from fedddpm_app.config import (
    Config,
    ConfigError,
    Sampler,
    Scalar,
    check_sampler,
    check_warmup,
    default_run_config,
    load_config,
)
from fedddpm_app.console import RunView, print_summary
from fedddpm_app.data.tensors import check_data
from fedddpm_app.device import resolve_device
from fedddpm_app.diffusion.sampling import SAMPLERS, image_seeds, sample_images
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.inprocess import run_inprocess
from fedddpm_app.monitor import class_rows
from fedddpm_app.progress import logging_to
from fedddpm_app.recording.recorder import mark_interrupted, open_log, run_directory
from fedddpm_app.recording.sheets import save_sheet
from fedddpm_app.simulation import COMPLETED, FlowerRun, leaving_in_order, to_toml

app = typer.Typer(help="Federated training of diffusion models on Flower.", no_args_is_help=True)
console = Console()

BAD_INPUT = 2
FAILED = 1


class Engine(StrEnum):
    """What runs the clients."""

    simulation = "simulation"
    inprocess = "inprocess"


@app.callback()
def main() -> None:
    """Federated training of diffusion models on Flower."""


@app.command()
def run(
    run_config: Annotated[
        list[str] | None, typer.Option("--run-config", "-c", help="'key=value key=value', as for `flwr run`.")
    ] = None,
    engine: Annotated[Engine, typer.Option(help="simulation: flwr run through Ray; inprocess: for breakpoints.")] = (
        Engine.simulation
    ),
    federation_config: Annotated[
        str, typer.Option(help="Added to --federation-config, such as 'client-resources-num-gpus=0.5'.")
    ] = "",
    app_dir: Annotated[Path | None, typer.Option("--app", help="Folder of the app's pyproject.toml.")] = None,
) -> None:
    """Run an experiment to its end; exit code 0 if it completed, 1 if it failed, 2 for a bad config."""
    folder = _find_app(app_dir)
    sys.path.insert(0, str(folder))  # for algorithms of the user's own, as in Flower
    try:
        overrides = _parse_overrides("--run-config", run_config or [])
        federation = _parse_overrides("--federation-config", [federation_config])
        resolved = default_run_config(folder) | overrides
        config = load_config(resolved)
        resolve_device(config.run.device)
        view = RunView(_count_steps(config), console)
        directory, log = _claim_directory(config, overrides | federation)
    except ConfigError as error:
        _refuse(str(error))
    placed: dict[str, Scalar] = {"output-dir": str(directory.parent), "run-name": directory.name}
    _say(f"run directory: {directory}")
    try:
        with log, leaving_in_order():
            if engine is Engine.inprocess:
                _run_inprocess(resolved | placed, config, log)
            else:
                _run_simulation(folder, overrides | placed, federation, config, view, log)
    except SystemExit:
        mark_interrupted(directory)
        _say(f"interrupted; run directory: {directory}")
        raise
    print_summary(directory, console)


def _claim_directory(config: Config, overrides: dict[str, Scalar]) -> tuple[Path, TextIO]:
    """Return the run's folder and its opened log, after refusing what `flwr run` cannot be given."""
    to_toml({**overrides, "output-dir": str(Path.cwd() / config.run.output_dir)})
    directory = run_directory(config, Path.cwd())
    return directory, open_log(directory)


def _count_steps(config: Config) -> int:
    """Check algorithm and data; return the optimiser steps of the run, of sampled clients' epochs a mean."""
    algorithm = get_algorithm(config)
    steps = [config.training.steps_for(size) for size in check_data(config.data, config.run.seed)]
    training = config.training
    if training.local_epochs:
        what = f"the {max(steps)} steps of local-epochs = {training.local_epochs}"
        check_warmup(what, max(steps), training.warmup_steps)
    clients = config.run.clients_per_round or config.data.num_clients
    client_steps = round(config.run.num_rounds * clients * sum(steps) / len(steps))
    return algorithm.total_steps(config, client_steps)


@app.command()
def sample(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or any diffusers pipeline folder.")],
    num_images: Annotated[
        int, typer.Option(min=1, help="Rounded up to the same number of each class for a conditional model.")
    ] = 64,
    sampler: Annotated[str, typer.Option(help=" | ".join(SAMPLERS))] = "dpm-solver++",
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 25,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto | cpu | cuda | cuda:N | mps")] = "auto",
    out: Annotated[Path | None, typer.Option(help="PNG to write; default: samples/ in the run directory.")] = None,
) -> None:
    """Draw a PNG sheet of new images from a finished run."""
    name: Sampler | None = next((s for s in SAMPLERS if s == sampler), None)
    if name is None:
        _refuse(f"--sampler {sampler} is not known: use one of {', '.join(SAMPLERS)}.")
    path = out or (run_dir / "samples" / f"sample-{name}-{steps}-seed{seed}.png")
    if path.suffix.lower() != ".png":
        _refuse(f"--out {path} is no PNG: give a name that ends in .png.")
    pipeline = _load_pipeline(run_dir)
    try:
        check_sampler("--steps", name, steps, pipeline.scheduler.config.num_train_timesteps)
        model = pipeline.unet.to(resolve_device(device))
    except ConfigError as error:
        _refuse(str(error))
    classes = model.config.num_class_embeds
    labels = None if classes is None else class_rows(classes, num_images)
    count = num_images if labels is None else len(labels)
    with console.status("drawing"):
        images = sample_images(
            model,
            pipeline.scheduler,
            sampler=name,
            steps=steps,
            seeds=image_seeds(seed, "sample", count),
            shape=(model.config.in_channels, model.config.sample_size, model.config.sample_size),
            labels=labels,
        )
    save_sheet(images, path, columns=round(count**0.5) if classes is None else count // classes)
    _say(f"{count} images: {path.resolve()}")


def _load_pipeline(run_dir: Path) -> Any:
    from diffusers import DDPMPipeline

    folder = run_dir / "pipeline" if (run_dir / "pipeline").is_dir() else run_dir
    models = sorted(each.parent for each in folder.glob("client-*/model_index.json"))
    if models:
        _refuse(f"RUN = {run_dir}: it has a model for each of {len(models)} clients; give one, such as {models[0]}.")
    if not (folder / "model_index.json").is_file():
        _refuse(f"RUN = {run_dir}: there is no pipeline in it; give the directory of a completed run.")
    return DDPMPipeline.from_pretrained(folder)


def _run_inprocess(run_config: dict[str, Scalar], config: Config, log: TextIO) -> None:
    """Run in this process; its log lines also go to ``log``."""
    server, client = importlib.import_module("server_app"), importlib.import_module("client_app")
    try:
        with logging_to(log):
            run_inprocess(server.app, client.app, run_config, config.data.num_clients)
    except ConfigError as error:
        _refuse(str(error))
    except RoundFailedError as error:
        _say(str(error))
        raise typer.Exit(FAILED) from error


def _run_simulation(
    app_dir: Path,
    overrides: dict[str, Scalar],
    federation: dict[str, Scalar],
    config: Config,
    view: RunView,
    log: TextIO,
) -> None:
    """Run through `flwr run`; keep its whole output in ``log``."""
    resources = {"num-supernodes": config.data.num_clients, "client-resources-num-cpus": config.run.client_threads}
    with FlowerRun(app_dir, overrides, resources | federation) as flower:
        with view:
            for line in flower.lines():
                log.write(line + "\n")
                view.line(line)
        status = flower.status()
    if status != COMPLETED:
        directory = Path(log.name).parent
        if (directory / "summary.json").exists():
            print_summary(directory, console)
        _say(f"Flower says: {status}. The whole log: {log.name}")
        raise typer.Exit(FAILED)


def _say(sentence: str) -> None:
    """Print a sentence as it is, on one line."""
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _find_app(app_dir: Path | None) -> Path:
    """Return the app's folder: the one given, the current one, or the one this package was installed from."""
    source = Path(__file__).resolve().parent.parent
    for folder in [app_dir] if app_dir else [Path.cwd(), source]:
        try:
            if "algorithm" in default_run_config(folder):
                return folder.resolve()
        except (OSError, LookupError, ValueError):
            continue  # no pyproject.toml, no TOML, or no run config: not this app
    return _refuse(
        f"--app = {app_dir or Path.cwd()}: there is no FedDDPM app in it; give the folder of its pyproject.toml."
    )


def _parse_overrides(option: str, texts: list[str]) -> dict[str, Scalar]:
    """Read overrides as `flwr run` does, but refuse the words without a value that it drops silently."""
    try:
        for text in texts:
            for word in [] if text.endswith(".toml") else shlex.split(text):
                if "=" not in word:
                    raise ValueError(f"{word} has no value")
        return dict(parse_config_args(texts))
    except (click.ClickException, ValueError, OSError) as error:
        raise ConfigError(
            f"{option} {' '.join(texts)}: it cannot be read ({error}); write 'key=value key=\"text\"'."
        ) from error


def _refuse(sentence: str) -> Never:
    """Print one sentence on standard error and exit with code 2."""
    Console(stderr=True, soft_wrap=True).print(sentence, markup=False, highlight=False)
    raise typer.Exit(BAD_INPUT)


if __name__ == "__main__":
    app()
