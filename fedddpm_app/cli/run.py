"""`fedddpm run`: run an experiment to its end."""

import importlib
import sys
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TextIO

import typer

from fedddpm_app.algorithms import get_algorithm
from fedddpm_app.cli.common import (
    FAILED,
    AppOption,
    RunConfigOption,
    claim_directory,
    console,
    find_app,
    parse_overrides,
    refuse,
    say,
)
from fedddpm_app.cli.console import RunView, WorkView, print_summary
from fedddpm_app.cli.deployed import check_deployable, run_deployed
from fedddpm_app.cli.fetch import SuperlinkOption
from fedddpm_app.config import Config, ConfigError, Scalar, check_warmup, default_run_config, load_config
from fedddpm_app.data.dataset import open_dataset
from fedddpm_app.data.settings import given_keys, leave_auto, misfit, read_auto
from fedddpm_app.device import resolve_device
from fedddpm_app.experiment.evaluators import create_evaluator
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.inprocess.grid import run_inprocess
from fedddpm_app.launch.flower_run import COMPLETED
from fedddpm_app.launch.simulation import SimulationRun, leaving_in_order
from fedddpm_app.progress import logging_to
from fedddpm_app.recording.recorder import mark_interrupted
from fedddpm_app.training.acceleration import check_compiler


class Engine(StrEnum):
    """The engine that runs the clients."""

    simulation = "simulation"
    inprocess = "inprocess"


def run(
    run_config: RunConfigOption = None,
    engine: Annotated[
        Engine, typer.Option(help="simulation: `flwr run` with Ray; inprocess: one process, for debugging.")
    ] = (Engine.simulation),
    federation_config: Annotated[
        str, typer.Option(help="Overrides for --federation-config, such as 'client-resources-num-gpus=0.5'.")
    ] = "",
    app_dir: AppOption = None,
    superlink: SuperlinkOption = "",
) -> None:
    """Run an experiment to its end. The exit code is 0 if it completes, 1 if it fails, 2 for a bad config.

    With --superlink the experiment runs on that SuperLink's nodes, and its run directory is fetched at the end.
    """
    folder = find_app(app_dir)
    sys.path.insert(0, str(folder))  # for the user's own algorithms, as in Flower
    try:
        overrides = parse_overrides("--run-config", run_config or [])
        federation = parse_overrides("--federation-config", [federation_config])
        values = default_run_config(folder) | overrides
        numbers = leave_auto(values) if superlink else read_auto(values)
        config = load_config(values | numbers)
        if superlink:
            _check_remote(config, engine, federation)
            run_deployed(folder, overrides, superlink, config)
            return
        if unfit := misfit(config, given_keys(values, overrides)):
            raise ConfigError(unfit)
        _run_here(folder, overrides | numbers, federation, engine, config)
    except ConfigError as error:
        refuse(str(error))


def _run_here(
    folder: Path, overrides: dict[str, Scalar], federation: dict[str, Scalar], engine: Engine, config: Config
) -> None:
    """Run on this machine."""
    check_compiler(config.run, resolve_device(config.run.device))
    with WorkView(console):
        steps = _count_steps(config)
    directory, log = claim_directory(config, overrides | federation)
    _prepare_evaluation(config, directory, log)
    placed: dict[str, Scalar] = {"output-dir": str(directory.parent), "run-name": directory.name}
    say(f"run directory: {directory}")
    try:
        with log, leaving_in_order():
            if engine is Engine.inprocess:
                _run_inprocess(default_run_config(folder) | overrides | placed, config, log)
            else:
                view = RunView(steps, console)
                _run_simulation(folder, overrides | placed, federation, config, view, log)
    except SystemExit:
        mark_interrupted(directory)
        say(f"interrupted; run directory: {directory}")
        raise
    print_summary(directory, console)


def _check_remote(config: Config, engine: Engine, federation: dict[str, Scalar]) -> None:
    """Raise ``ConfigError`` for options that cannot be used with --superlink."""
    get_algorithm(config)
    if engine is not Engine.simulation or federation:
        raise ConfigError("--superlink runs on SuperNodes: leave --engine and --federation-config out.")
    check_deployable(config)


def _prepare_evaluation(config: Config, directory: Path, log: TextIO) -> None:
    """Train the evaluation networks before the run, so that bad input is refused early; then remove the folder."""
    try:
        if config.evaluation.measures_images:
            with WorkView(console):
                create_evaluator(config)
    except ConfigError:
        log.close()
        Path(log.name).unlink()
        with suppress(OSError):  # the folder holds files of the user
            directory.rmdir()
        raise


def _count_steps(config: Config) -> int:
    """Check the algorithm and the data; return the run's optimiser steps (an estimate if clients are sampled)."""
    algorithm = get_algorithm(config)
    steps = [config.training.steps_for(size) for size in open_dataset(config.data, config.run.seed).check()]
    training = config.training
    if training.local_epochs:
        source = f"the {max(steps)} steps of local-epochs = {training.local_epochs}"
        check_warmup(source, max(steps), training.warmup_steps)
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
    """Run with `flwr run`; keep its whole output in ``log``."""
    resources = {"num-supernodes": config.data.num_clients, "client-resources-num-cpus": config.run.client_threads}
    with SimulationRun(app_dir, overrides, resources | federation) as flower:
        with view:
            for line in flower.lines():
                log.write(line + "\n")
                view.line(line)
        status = flower.status()
    if status != COMPLETED:
        directory = Path(log.name).parent
        if (directory / "summary.json").exists():
            print_summary(directory, console)
        say(f"Flower reports: {status}. The whole log: {log.name}")
        raise typer.Exit(FAILED)
