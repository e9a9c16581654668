"""`fedddpm run`: run an experiment to its end."""

import sys
from contextlib import suppress
from pathlib import Path

import typer
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedddpm_app.algorithms import get_algorithm
from fedddpm_app.cli.claim import claim_directory, continue_directory
from fedddpm_app.cli.clean import remove_left_overs
from fedddpm_app.cli.common import FAILED, console, refuse, say
from fedddpm_app.cli.deployed import check_deployable, run_deployed
from fedddpm_app.cli.options import Engine
from fedddpm_app.cli.result_tables import print_summary
from fedddpm_app.cli.run_view import RunView
from fedddpm_app.cli.start import how_to_resume
from fedddpm_app.cli.work_view import WorkView
from fedddpm_app.client.state import default_folder
from fedddpm_app.config import Config, ConfigError, Scalar, check_warmup, default_run_config
from fedddpm_app.data.dataset import open_dataset
from fedddpm_app.data.settings import given_keys, misfit
from fedddpm_app.data.store import cache_folder
from fedddpm_app.device import resolve_device
from fedddpm_app.disk.private import private_umask
from fedddpm_app.experiment.evaluators import create_evaluator
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.inprocess.grid import run_inprocess
from fedddpm_app.launch import preflight
from fedddpm_app.launch.app_folder import bundled, load_apps
from fedddpm_app.launch.flower_run import COMPLETED
from fedddpm_app.launch.resources import crowding, simulation_resources
from fedddpm_app.launch.simulation import SimulationRun, Stopped, leaving_in_order
from fedddpm_app.progress import logging_to
from fedddpm_app.recording.directory import output_folder
from fedddpm_app.recording.files import RecordingError
from fedddpm_app.recording.layout import CLIENT_STATE, CONFIG, STATS
from fedddpm_app.recording.log import RunLog
from fedddpm_app.recording.reading import read_rows
from fedddpm_app.recording.status import COMPLETED as RUN_COMPLETED
from fedddpm_app.recording.status import mark_interrupted, name_of_stop, read_status
from fedddpm_app.tracking import chosen_trackers
from fedddpm_app.training.acceleration import check_compiler


def execute(
    folder: Path,
    config: Config,
    overrides: dict[str, Scalar],
    federation: dict[str, Scalar],
    engine: Engine,
    superlink: str,
) -> None:
    """Run on this machine, or on the nodes of a SuperLink."""
    sys.path.insert(0, str(folder))  # for the user's own algorithms, as in Flower
    with private_umask():
        if not superlink:
            return _run_here(folder, overrides, federation, engine, config)
        _check_remote(config, engine, federation)
        with bundled(folder) as bundle:
            run_deployed(bundle, overrides, superlink, config)


def _run_here(
    folder: Path, overrides: dict[str, Scalar], federation: dict[str, Scalar], engine: Engine, config: Config
) -> None:
    """Run on this machine."""
    removed = remove_left_overs(output_folder(config, Path.cwd()))  # first, because they take room
    _check_machine(config, federation, engine)
    if unfit := misfit(config, given_keys(default_run_config(folder) | overrides, overrides)):
        raise ConfigError(unfit)
    check_compiler(config.run, resolve_device(config.run.device))
    with WorkView(console):
        steps = _count_steps(config)
    before = 0
    if config.run.resume:
        directory, log = continue_directory(config, default_run_config(folder) | overrides)
        before = _steps_before(directory, config, steps)
    else:
        directory, log = claim_directory(config, overrides | federation)
    apps = _prepare(folder, engine, config, directory, log)
    placed = _places(directory, config)
    for sentence in (f"run directory: {directory}", *removed):
        say(sentence)
    try:
        with log, leaving_in_order():
            if apps:  # a debugger needs the terminal
                view = RunView(steps, console, "starting", live=console.is_jupyter, steps_before=before)
                _run_inprocess(*apps, default_run_config(folder) | overrides | placed, config, view, log)
            else:
                view = RunView(steps, console, steps_before=before)
                _run_simulation(folder, overrides | placed, federation, config, view, log)
    except BaseException as error:
        if isinstance(error, Stopped):
            with suppress(RecordingError):  # on a full disk, the next reader corrects the status
                mark_interrupted(directory, name_of_stop(error), error.at)
            say(f"interrupted; run directory: {directory}")
        if (directory / CONFIG).exists():
            say(f"continue it: {how_to_resume(directory, folder, config, engine, federation)}")
        raise
    with suppress(OSError):  # the clients' states, which they removed at the end; missing if they keep none
        (directory / CLIENT_STATE).rmdir()
    print_summary(directory, console)


def _check_machine(config: Config, federation: dict[str, Scalar], engine: Engine) -> None:
    """Raise ``ConfigError`` if this machine cannot run the experiment, before data and networks are prepared."""
    preflight.check_temporary_folder()
    if engine is Engine.simulation:
        preflight.check_simulation(config, federation)
    chosen_trackers(config)
    run, data = config.run, config.data
    output = output_folder(config, Path.cwd())
    preflight.check_folder(f'output-dir = "{run.output_dir}"', output, preflight.OUTPUT_MB)
    cache = f'cache-dir = "{data.cache_dir}"' if data.cache_dir else "XDG_CACHE_HOME, or the key cache-dir"
    preflight.check_folder(cache, cache_folder(data), preflight.CACHE_MB)
    if run.state_dir:
        state = Path(run.state_dir).expanduser().absolute()
        preflight.check_folder(f'state-dir = "{run.state_dir}"', state, preflight.STATE_MB)
    warning = crowding(config, federation, simulated=engine is Engine.simulation)
    if warning:
        say(warning)


def _check_remote(config: Config, engine: Engine, federation: dict[str, Scalar]) -> None:
    """Raise ``ConfigError`` for options that cannot be used with --superlink."""
    get_algorithm(config)
    if engine is not Engine.simulation or federation:
        raise ConfigError("--superlink runs on SuperNodes: leave --engine and --federation-config out.")
    check_deployable(config)


def _prepare(
    folder: Path, engine: Engine, config: Config, directory: Path, log: RunLog
) -> tuple[ServerApp, ClientApp] | None:
    """Train the evaluation networks before the run, and return the apps that run in this process.

    Bad input is thus refused early, and the run's folder is removed.
    """
    try:
        if config.evaluation.measures_images:
            with WorkView(console):
                create_evaluator(config)
        return load_apps(folder) if engine is Engine.inprocess else None
    except ConfigError:
        if not config.run.resume:
            with log:
                log.path.unlink()
            with suppress(OSError):  # the folder holds files of the user
                directory.rmdir()
        raise


def _places(directory: Path, config: Config) -> dict[str, Scalar]:
    """Return the keys that place a run's files; its clients' states lie in its folder, unless the user set a place.

    The states of a run that plain `flwr run` started are in the user's Flower home, where this command has its own.
    """
    state = directory / CLIENT_STATE
    if config.run.state_dir and not state.exists():
        state = Path(config.run.state_dir)
    elif config.run.resume and not state.exists():
        state = default_folder()
    return {"output-dir": str(directory.parent), "run-name": directory.name, "state-dir": str(state)}


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


def _steps_before(directory: Path, config: Config, steps: int) -> int:
    """Return how many of a resumed run's steps are done: by the share of its expected compute that it has recorded."""
    counts = [row.get("compute/steps") for row in read_rows(directory / STATS)]
    done = sum(count for count in counts if isinstance(count, int | float))
    sizes = open_dataset(config.data, config.run.seed).check()
    expected = get_algorithm(config).cost(config, sizes).steps
    return round(steps * min(1.0, done / expected)) if expected else 0


def _run_inprocess(
    server: ServerApp, client: ClientApp, run_config: dict[str, Scalar], config: Config, view: RunView, log: RunLog
) -> None:
    """Run in this process; keep its log lines in ``log``."""

    def take(line: str) -> None:
        log.write(line)
        view.line(line)

    try:
        with view, logging_to(take):
            run_inprocess(server, client, run_config, config.data.num_clients)
    except ConfigError as error:
        refuse(str(error))
    except (RoundFailedError, RecordingError) as error:  # the view has shown the reason
        say(f"The whole log: {log.path}")
        raise typer.Exit(FAILED) from error


def _run_simulation(
    app_dir: Path,
    overrides: dict[str, Scalar],
    federation: dict[str, Scalar],
    config: Config,
    view: RunView,
    log: RunLog,
) -> None:
    """Run with `flwr run`; keep its whole output in ``log``."""
    resources = simulation_resources(config, federation)
    with bundled(app_dir) as bundle, SimulationRun(bundle, overrides, resources) as flower:
        with view:
            for line in flower.lines():
                log.write(line)
                view.line(line)
        status = flower.status()
    directory = log.path.parent
    outcome = read_status(directory)
    if flower.was_left:
        say("Flower had not ended some time after the end of the run: its processes were stopped.")
    if status != COMPLETED and not (flower.was_left and outcome.state == RUN_COMPLETED):
        if outcome.is_final:
            print_summary(directory, console)
        reported = "" if flower.was_left else f"Flower reports: {status}. "
        say(f"{reported}The whole log: {log.path}")
        raise typer.Exit(FAILED)
