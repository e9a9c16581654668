"""`fedddpm report`: one HTML file about a run or a comparison."""

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fedddpm_app.cli.common import refuse, say
from fedddpm_app.cli.writing import failing_to_write
from fedddpm_app.compare.plan import RESULTS
from fedddpm_app.recording.layout import CONFIG, STATS, SUMMARY
from fedddpm_app.recording.status import is_locked, read_status

if TYPE_CHECKING:
    from fedddpm_app.report.blocks import Page

_NEEDED = ("altair", "vl_convert", "jinja2")
_REFRESH_SECONDS = 5
_WATCHED = (STATS, SUMMARY, RESULTS, "security.jsonl", "samples", "auxiliary")


def report(folder: Path, out: Path | None, follow: bool, closest_pairs: bool) -> None:
    """Write, and follow; ``commands.report`` describes the arguments."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        refuse(f"a report needs {' and '.join(missing)}: pip install 'fedddpm-app[report]'")
    make = _maker(folder, closest_pairs)
    from fedddpm_app.recording.layout import REPORT

    path = out or folder / REPORT
    if path.is_dir():
        refuse(f"--out = {path} is a folder; give the name of a file, such as {path / REPORT}.")
    if not path.parent.is_dir():
        refuse(f"--out = {path}: there is no folder {path.parent}; create it, or give another file.")
    with failing_to_write():
        _write(make(_REFRESH_SECONDS if follow else 0), path)
        say(f"report: {path.resolve()}")
        if follow:
            _follow(folder, path, make)


def _maker(folder: Path, closest_pairs: bool) -> "Callable[[int], Page]":
    """Return what makes the page, given the seconds of its refreshment; refuse another folder."""
    if (folder / RESULTS).is_file():
        from fedddpm_app.report.comparison import comparison_page

        if closest_pairs:
            refuse("--closest-pairs is for the report of a run; give one of the comparison's runs.")
        return lambda refresh: comparison_page(folder, refresh=refresh)
    if (folder / CONFIG).is_file():
        from fedddpm_app.report.run import run_page

        return lambda refresh: run_page(folder, pairs=closest_pairs, refresh=refresh)
    return refuse(
        f"RUN_OR_COMPARISON = {folder}: there is neither a run ({CONFIG}) nor a comparison ({RESULTS}) in it; give the "
        "folder of one, such as runs/NAME."
    )


def _write(page: "Page", path: Path) -> None:
    from fedddpm_app.report.saving import save_page

    save_page(page, path)


def _follow(folder: Path, path: Path, make: "Callable[[int], Page]") -> None:
    """Write the report again after each change, until the run or comparison ends, or Ctrl-C."""
    say(f"open it in a browser: it is renewed every {_REFRESH_SECONDS} s while the run goes on; Ctrl-C ends this.")
    before, is_over = _state(folder), _is_over(folder)
    try:
        while not is_over:
            time.sleep(_REFRESH_SECONDS)
            is_over = _is_over(folder)
            if (now := _state(folder)) != before or is_over:
                _write(make(0 if is_over else _REFRESH_SECONDS), path)
                before = now
    except KeyboardInterrupt:
        _write(make(0), path)
        return
    say("it has ended; the report is complete.")


def _state(folder: Path) -> list[tuple[int, int]]:
    """Return the times and sizes of the files that a report shows."""
    found = []
    for name in _WATCHED:
        try:
            about = (folder / name).stat()
            found.append((about.st_mtime_ns, about.st_size))
        except OSError:
            found.append((0, 0))
    return found


def _is_over(folder: Path) -> bool:
    return not is_locked(folder) if (folder / RESULTS).is_file() else read_status(folder).is_final
