"""`fedddpm clean`: show what dead runs left on this machine, and remove it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import typer
from rich import box
from rich.table import Table

from fedddpm_app.cli.common import console, say
from fedddpm_app.config import default_run_config, load_config, packaged_app
from fedddpm_app.data.store import cache_folder
from fedddpm_app.launch.homes import end_home, headless_homes, status_of
from fedddpm_app.launch.leftovers import LeftOver, find_left_overs, partial_files
from fedddpm_app.recording.status import mark_interrupted

_GOES_ON = "goes on, although its command was killed: `fedddpm clean --headless` stops it"


def clean(runs: Path, yes: bool, resumable: bool, headless: bool) -> None:
    """Show and remove left-overs; ``commands.clean`` describes the arguments."""
    if not runs.expanduser().is_dir() and runs != Path("runs"):
        say(f"RUNS = {runs}: there is no such folder; run directories lie in the folder of output-dir")
    for home in headless_homes():
        _stop(home, headless, yes)
    cache = cache_folder(load_config(default_run_config(packaged_app())).data)
    found = [*find_left_overs(runs.expanduser().absolute()), *partial_files(cache / "auxiliary")]
    kept = [item for item in found if item.is_resumable and not resumable]
    chosen = [item for item in found if item not in kept]
    _show("left by dead runs", chosen)
    _show("kept, because a resumed run continues from it (--resumable removes it)", kept)
    if not chosen:
        say("nothing to remove")
    elif yes or typer.confirm(f"Remove these {len(chosen)}?"):
        gone = [item for item in chosen if item.remove()]
        say(f"removed {len(gone)} of {len(chosen)}")


def remove_left_overs(runs: Path) -> list[str]:
    """Remove, before a run, what dead runs certainly left and cannot need again.

    Return sentences for the user, also about runs that go on alone.
    """
    found = [(item, item.num_bytes) for item in find_left_overs(runs) if not item.is_resumable]
    sizes = [size for item, size in found if item.remove()]
    sentences = [f"{_headless_run(home)} {_GOES_ON}" for home in headless_homes()]
    if sizes:
        sentences.append(f"removed what dead runs left: {len(sizes)} files or folders, {sum(sizes) / 1e6:,.1f} MB")
    return sentences


def _stop(home: Path, headless: bool, yes: bool) -> None:
    """Stop a run that goes on without its command, if the user wants that."""
    name = _headless_run(home)
    if not headless:
        say(f"{name} {_GOES_ON}")
    elif yes or typer.confirm(f"Stop {name}, which goes on although its command was killed?"):
        began, status = datetime.now(UTC), status_of(home)
        end_home(home)
        if status is not None:
            mark_interrupted(status.directory, "fedddpm clean", began)
        say(f"stopped {name}")


def _headless_run(home: Path) -> str:
    status = status_of(home)
    return f"the run {status.directory}" if status else f"the run of {home}"


def _show(title: str, found: Sequence[LeftOver]) -> None:
    if not found:
        return
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for column in ("MB", "age"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("kind")
    table.add_column("path", overflow="fold")
    for item in found:
        table.add_row(f"{item.num_bytes / 1e6:,.2f}", _age(item.age_s), item.kind, str(item.path))
    console.print(table)


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
