"""`fedddpm run --superlink`: run on SuperNodes, follow the run from this machine, and fetch its files."""

from pathlib import Path

import typer

from fedddpm_app.cli.claim import claim_directory
from fedddpm_app.cli.common import FAILED, console, say
from fedddpm_app.cli.fetch import fetch_into, find_directory
from fedddpm_app.cli.result_tables import print_summary
from fedddpm_app.cli.run_view import RunView
from fedddpm_app.config import Config, ConfigError, Scalar
from fedddpm_app.launch.connection import check_reachable
from fedddpm_app.launch.flower_run import COMPLETED, FlowerRun, has_ended
from fedddpm_app.launch.receiver import FetchError
from fedddpm_app.launch.simulation import leaving_in_order
from fedddpm_app.progress import parse_directory
from fedddpm_app.recording.log import RunLog
from fedddpm_app.recording.status import read_status


def check_deployable(config: Config) -> None:
    """Raise ``ConfigError`` for values that mean something else on another machine."""
    if Path(config.run.output_dir).expanduser().is_absolute():
        raise ConfigError(
            f'output-dir = "{config.run.output_dir}" is a path of this machine, but with --superlink the run directory '
            "is first made on the server's host: give a relative path; each host resolves it in its working directory."
        )


def run_deployed(app_dir: Path, overrides: dict[str, Scalar], connection: str, config: Config) -> None:
    """Run on a SuperLink's nodes to the end, then fetch the run directory; its folder here is created first."""
    check_reachable(connection)
    directory, log = claim_directory(config, overrides)
    say(f"run directory: {directory}")
    run = FlowerRun(app_dir, overrides | {"run-name": directory.name}, {}, connection)
    try:
        with log, leaving_in_order():
            on_server = _follow(run, log)
            status = run.status()
    except SystemExit:
        _say_how_to_continue(run)
        raise
    if run.run_id is not None and not has_ended(status):
        say(f"the connection was lost, or Flower's log ended early: Flower reports {status}")
        _say_how_to_continue(run)
        raise typer.Exit(FAILED)
    try:
        remote = find_directory(on_server)
        fetch_into(directory, run, remote)
        say(f"run {run.run_id}, on the server's host: {remote}")
    except FetchError as error:
        say(str(error))
    outcome = read_status(directory, has_ended(status))
    if outcome.is_final:
        print_summary(directory, console)
    if status != COMPLETED or not outcome.is_final:
        say(f"Flower reports: {status}. The whole log: {log.path}")
        raise typer.Exit(FAILED)


def _follow(run: FlowerRun, log: RunLog) -> list[str]:
    """Show the progress of a run to its end; return its log lines that name its folder on the server's host."""
    named = []
    with RunView(None, console, "starting") as view:  # clients report only at their end, which gives no rate
        for line in run.lines():
            log.write(line)
            view.line(line)
            named += [line] if parse_directory(line) else []
    return named


def _say_how_to_continue(run: FlowerRun) -> None:
    if run.run_id is not None:
        name = run.connection
        say(f"the run {run.run_id} continues")
        say(f"follow it: flwr log {run.run_id} {name}")
        say(f"stop it:   flwr stop {run.run_id} {name}")
        say(f"its files: fedddpm fetch {run.run_id} --superlink {name}")
