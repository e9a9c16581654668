"""`fedddpm compare`: run a grid of rows, conditions and seeds, and write its results."""

import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from itertools import count
from pathlib import Path

import psutil
import typer

from fedddpm_app.cli.common import FAILED, RUN_CONFIG, find_app, read_config, refuse, say
from fedddpm_app.cli.compare_view import GridView, print_plan
from fedddpm_app.cli.options import Engine
from fedddpm_app.cli.start import resumed_config
from fedddpm_app.cli.writing import failing_to_write
from fedddpm_app.compare.archive import Archive, place_of
from fedddpm_app.compare.cells import REFUSED, Cell, State, state_of
from fedddpm_app.compare.extractors import restore_extractors
from fedddpm_app.compare.outputs import Outputs
from fedddpm_app.compare.plan import Plan, make_plan
from fedddpm_app.compare.pool import run_cells
from fedddpm_app.compare.progress import GridProgress
from fedddpm_app.compare.publish import publish_results
from fedddpm_app.compare.shared import find_shared, link_shared
from fedddpm_app.compare.spec import read_spec
from fedddpm_app.config import ConfigError, Scalar, default_run_config, kinds_of_keys, read_overrides
from fedddpm_app.device import resolve_device
from fedddpm_app.disk.owned import LOCK, OwnerLock
from fedddpm_app.launch.resources import usable_cpus
from fedddpm_app.launch.simulation import Stopped, leaving_in_order
from fedddpm_app.recording.files import RecordingError
from fedddpm_app.recording.layout import CONFIG, LOG

_CELL_BYTES = 10**9  # the least memory of a cell


@failing_to_write()
def compare(
    grid: Path,
    run_config: list[str] | None,
    app_dir: Path | None,
    out: Path | None,
    jobs: int | None,
    publish: Path | None,
    restore: Path | None,
    dry_run: bool,
    no_run: bool,
) -> None:
    """Plan, run, write; ``commands.compare`` describes the arguments."""
    folder = find_app(app_dir)
    sys.path.insert(0, str(folder))  # for the user's own algorithms
    try:
        plan, archive = _plan(grid, run_config, folder, out, restore)
        with nullcontext() if dry_run else _locked(plan.folder):
            states = {cell: state_of(cell, plan.defaults) for cell in plan.cells}
            new = [cell for cell, state in states.items() if state is State.NEW]
            published = archive.find(plan, new) if archive else []
            states |= dict.fromkeys(published, State.PUBLISHED)
            if publish is not None:
                _keep_published(publish, plan, states, runs=not no_run)
            shared = find_shared(plan, [cell for cell, state in states.items() if state is State.NEW])
            jobs = jobs or _jobs(plan)
            print_plan(plan, states | dict.fromkeys(shared, State.SHARED), jobs)
            if dry_run:
                return
            if archive and published:
                archive.restore(plan, published)
            states |= dict.fromkeys(published, State.COMPLETED)
            states = link_shared(states, shared)
            cells = [] if no_run else _incomplete(states)
            if cells:
                restore_extractors(plan.cells, restore)
            failed = _run(plan, states, cells, jobs, folder, publish)
    except ConfigError as error:
        refuse(str(error))
    if failed:
        raise typer.Exit(FAILED)


def run_cell(app_dir: Path, overrides: dict[str, Scalar]) -> None:
    """Run or resume a cell in this process, as `fedddpm run --engine inprocess` does; exit with its code."""
    from fedddpm_app.cli.run import execute

    directory = Path(str(overrides["output-dir"]), str(overrides["run-name"]))
    try:
        base = _continued(directory) or overrides
        config, given = read_config(app_dir, None, base=base, named=overrides.get("algorithm"))
        execute(app_dir, config, given, {}, Engine.inprocess, "")
    except ConfigError as error:
        say(str(error))
        sys.exit(REFUSED)
    except typer.Exit as end:
        sys.exit(end.exit_code)


def _continued(directory: Path) -> dict[str, Scalar]:
    """Return the keys of a started cell, to continue from its newest good checkpoint; empty to start it.

    A cell that cannot continue is put aside.
    """
    from fedddpm_app.recording.resumable import find_checkpoint

    if not (directory / CONFIG).exists():
        (directory / LOG).unlink(missing_ok=True)  # of a process that ended before the start of its run
        return {}
    for previous in (False, True):
        try:
            find_checkpoint(directory, previous=previous)
        except ConfigError as error:
            say(str(error))
        else:
            return resumed_config(str(directory), previous, on_this_host=True)
    aside = next(path for n in count(1) if not (path := directory.with_name(f"{directory.name}.damaged-{n}")).exists())
    directory.rename(aside)
    say(f"the cell starts again; what it had is in {aside}")
    return {}


def _plan(
    grid: Path, run_config: list[str] | None, app_dir: Path, out: Path | None, restore: Path | None
) -> tuple[Plan, Archive | None]:
    """Return the plan of a grid file with the keys of -c, and the published cells to restore."""
    extra = read_overrides(RUN_CONFIG, run_config or [], kinds_of_keys())
    if extra.problems:
        raise ConfigError("\n".join(extra.problems))
    spec = read_spec(grid, extra.values)
    folder = (out or Path("runs", f"compare-{spec.name}")).expanduser().absolute()
    archive = Archive(restore, spec.name) if restore else None
    solved = archive.solved if archive else {}
    return make_plan(spec, folder, default_run_config(app_dir), str(grid), solved), archive


def _jobs(plan: Plan) -> int:
    """Return how many cells fit on this machine: by the threads and the least memory of a cell; on an accelerator 1."""
    configs = [setting.config.run for setting in plan.settings]
    if any(resolve_device(run.device).type != "cpu" for run in configs):
        return 1
    threads = max(max(run.client_threads, run.server_threads) for run in configs)
    return max(1, min(usable_cpus() // threads, psutil.virtual_memory().available // _CELL_BYTES))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the grid's folder in the body: only one command at a time may work in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = OwnerLock(folder / LOCK)
        taken = lock.acquire()
    except OSError as error:
        raise ConfigError(f"--out = {folder} cannot be used ({error.strerror}): give a writable folder.") from error
    if not taken:
        raise ConfigError(f"--out = {folder}: another `fedddpm compare` works in it; wait for its end, or stop it.")
    try:
        yield
    finally:
        lock.release()


def _keep_published(target: Path, plan: Plan, states: dict[Cell, State], *, runs: bool) -> None:
    """Raise ``ConfigError`` if the published grid has complete cells that this one will lack.

    Cells with another config are replaced if this command ``runs`` them.
    """
    if not Archive.exists(target, plan.spec.name):
        return
    archive = Archive(target, plan.spec.name)
    kept = archive.complete(plan, _incomplete(states))
    lost = [cell for cell in kept if states[cell] is not State.PUBLISHED]
    if lost:
        started = [str(cell.directory) for cell in lost if cell.directory.exists()]
        first = f"remove the incomplete {', '.join(started)}, and " if started else ""
        raise ConfigError(
            f"--publish = {target} has complete cells ({len(lost)}) of {plan.spec.name} that {plan.folder} lacks, such "
            f"as {lost[0].name}: {first}add --restore {target} to keep them."
        )
    has = (State.COMPLETED, State.PUBLISHED)
    here = {place_of(cell, plan) for cell, state in states.items() if runs or state in has}
    if others := sorted(archive.places - here):
        raise ConfigError(
            f"--publish = {target} has complete cells ({len(others)}) of {plan.spec.name} that this grid lacks or has "
            f"with another config, such as {others[0]}: give the grid another name; or, to drop them, remove "
            f"{archive.path} first."
        )


def _incomplete(states: dict[Cell, State]) -> list[Cell]:
    return [cell for cell, state in states.items() if state is not State.COMPLETED]


def _run(
    plan: Plan, states: dict[Cell, State], cells: list[Cell], jobs: int, app_dir: Path, publish: Path | None
) -> dict[Cell, str]:
    """Run cells, and write the results of all complete ones; return the reasons of failed cells."""
    if running := [str(cell.directory) for cell, state in states.items() if state is State.RUNNING]:
        raise ConfigError(f"{', '.join(running)}: another process still runs it; wait for its end, or stop it.")
    plan.solved.save()
    progress = GridProgress(states, jobs)
    outputs = Outputs(plan, shlex.join(["fedddpm", *sys.argv[1:]]))
    began = time.monotonic()
    problems: list[str] = []

    def write() -> list[str]:
        return outputs.write(progress.failed, (time.monotonic() - began) / 3600 if cells else 0.0)

    def after_cell() -> None:
        """Print the first problems at once: later cells may have the same ones."""
        found = write()
        if not problems:
            problems.extend(found)
            for problem in found:
                say(problem)

    try:
        with leaving_in_order(), GridView(progress, after_cell) as view:
            run_cells(cells, jobs, "fedddpm_app.cli.compare:run_cell", app_dir, view)
    except Stopped:
        say(f"stopped; the same command continues this grid: {plan.folder}")
        with suppress(RecordingError):
            write()
        raise
    sentences = write()
    outputs.save_pictures()
    published = _publish(plan, publish, progress.failed) if publish is not None else []
    failed = [f"failed: {cell.name}: {reason} (its output: {cell.log})" for cell, reason in progress.failed.items()]
    for sentence in (*sentences, *published, *failed):
        say(sentence)
    say(f"results: {plan.folder / 'table.md'}")
    return progress.failed


def _publish(plan: Plan, target: Path, failed: Mapping[Cell, str]) -> list[str]:
    """Publish the results, unless cells that failed were to replace published ones; return sentences about it."""
    try:
        if failed:
            _keep_published(target, plan, {cell: state_of(cell, plan.defaults) for cell in plan.cells}, runs=False)
    except ConfigError as error:
        return [f"not published, because cells failed: {error}"]
    return [f"published: {path}" for path in publish_results(plan, target)]
