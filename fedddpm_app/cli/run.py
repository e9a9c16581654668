"""`fedddpm run`: an experiment to its end."""

import importlib
import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TextIO

import typer

from fedddpm_app.acceleration import check_compiler
from fedddpm_app.algorithms import get_algorithm
from fedddpm_app.cli.common import FAILED, AppOption, RunConfigOption, console, find_app, parse_overrides, refuse, say
from fedddpm_app.config import Config, ConfigError, Scalar, check_warmup, default_run_config, load_config
from fedddpm_app.console import RunView, WorkView, print_summary
from fedddpm_app.data.tensors import check_data
from fedddpm_app.device import resolve_device
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.inprocess import run_inprocess
from fedddpm_app.measuring import create_evaluator
from fedddpm_app.progress import logging_to
from fedddpm_app.recording.recorder import mark_interrupted, open_log, run_directory
from fedddpm_app.simulation import COMPLETED, FlowerRun, leaving_in_order, to_toml


class Engine(StrEnum):
    """What runs the clients."""

    simulation = "simulation"
    inprocess = "inprocess"


def run(
    run_config: RunConfigOption = None,
    engine: Annotated[Engine, typer.Option(help="simulation: flwr run through Ray; inprocess: for breakpoints.")] = (
        Engine.simulation
    ),
    federation_config: Annotated[
        str, typer.Option(help="Added to --federation-config, such as 'client-resources-num-gpus=0.5'.")
    ] = "",
    app_dir: AppOption = None,
) -> None:
    """Run an experiment to its end; exit code 0 if it completed, 1 if it failed, 2 for a bad config."""
    folder = find_app(app_dir)
    sys.path.insert(0, str(folder))  # for algorithms of the user's own, as in Flower
    try:
        overrides = parse_overrides("--run-config", run_config or [])
        federation = parse_overrides("--federation-config", [federation_config])
        resolved = default_run_config(folder) | overrides
        config = load_config(resolved)
        check_compiler(config.run, resolve_device(config.run.device))
        with WorkView(console):
            steps = _count_steps(config)
        view = RunView(steps, console)
        directory, log = _claim_directory(config, overrides | federation)
        _prepare_evaluation(config, directory, log)
    except ConfigError as error:
        refuse(str(error))
    placed: dict[str, Scalar] = {"output-dir": str(directory.parent), "run-name": directory.name}
    say(f"run directory: {directory}")
    try:
        with log, leaving_in_order():
            if engine is Engine.inprocess:
                _run_inprocess(resolved | placed, config, log)
            else:
                _run_simulation(folder, overrides | placed, federation, config, view, log)
    except SystemExit:
        mark_interrupted(directory)
        say(f"interrupted; run directory: {directory}")
        raise
    print_summary(directory, console)


def _claim_directory(config: Config, overrides: dict[str, Scalar]) -> tuple[Path, TextIO]:
    """Return the run's folder and its opened log, after refusing what `flwr run` cannot be given."""
    to_toml({**overrides, "output-dir": str(Path.cwd() / config.run.output_dir)})
    directory = run_directory(config, Path.cwd())
    return directory, open_log(directory)


def _prepare_evaluation(config: Config, directory: Path, log: TextIO) -> None:
    """Train the networks of the evaluation while bad input can still be refused; the folder is then given back."""
    try:
        if config.evaluation.measures_images:
            with WorkView(console):
                create_evaluator(config)
    except ConfigError:
        log.close()
        Path(log.name).unlink()
        with suppress(OSError):  # something of the user's is in it
            directory.rmdir()
        raise


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


def _run_inprocess(run_config: dict[str, Scalar], config: Config, log: TextIO) -> None:
    """Run in this process; its log lines also go to ``log``."""
    server, client = importlib.import_module("server_app"), importlib.import_module("client_app")
    try:
        with logging_to(log):
            run_inprocess(server.app, client.app, run_config, config.data.num_clients)
    except ConfigError as error:
        refuse(str(error))
    except RoundFailedError as error:
        say(str(error))
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
        say(f"Flower says: {status}. The whole log: {log.name}")
        raise typer.Exit(FAILED)
