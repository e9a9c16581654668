"""A separate Flower app that sends a run directory from the server's host to the user who starts it.

A user of a deployment has only Flower's connection, which carries the log of a run's ServerApp. `fedddpm fetch`
therefore starts this module as an app: it writes the files of one run directory to its log, as lines of base64 with
their SHA-256, and ``receiver`` assembles the files. The module imports only Flower and the standard library, because
the server's host may not have our packages.

Only plain files with one name are sent. A link could lead to any file of the host, and is only named; so are sockets
and pipes. Working files of a run, among them the clients' own models, and trackers' databases never leave the host, and
are not named.
"""

import base64
import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

MARK = "[fedddpm-delivery]"
WORKING_FOLDERS = ("scratch", "unfinished", "client-state", "tracking")  # at the top of a run directory
LOG = "log.txt"  # the receiver writes its own
REPORT = "report.html"  # a page of another host could hold scripts; the receiver makes its own
_WORKING_FILES = ("owner.lock", "reserve.bin", LOG, REPORT)
_PARTIAL = ".partial"
_TOO_LARGE, _LINK, _SPECIAL = "size", "link", "special"
_CHUNK_BYTES = 96 * 1024
_BURST_CHARACTERS = 3_000_000  # then a pause: Flower sends the log in requests, a few per second
_BURST_SECONDS = 0.3
_LAST_SECONDS = 3.0

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Send the files of ``directory``, which must be the run directory of the run ``of-run``."""
    given = context.run_config
    directory, run_id = Path(str(given["directory"])), str(given["of-run"])
    check_directory(directory, run_id)
    send(lines_of(directory, float(given["largest-mb"]), float(given["total-mb"]), int(given["most-files"])))


def send(lines: Iterable[str], pause: Callable[[float], None] = time.sleep) -> None:
    """Write lines as fast as Flower takes them, and wait for the last lines.

    Lines that Flower has not taken when the app ends are lost.
    """
    written = since = 0
    for line in lines:
        sys.stdout.write(line + "\n")
        written, since = written + len(line), since + len(line)
        if since > _BURST_CHARACTERS:
            pause(_BURST_SECONDS)
            since = 0
    sys.stdout.flush()
    pause(_LAST_SECONDS + _BURST_SECONDS * written / _BURST_CHARACTERS / 10)


def check_directory(directory: Path, run_id: str) -> None:
    """Raise ``ValueError`` unless a folder is the run directory of the run ``run_id``; no other folder is sent.

    A run directory that was resumed is that of several runs.
    """
    if directory.is_symlink():
        raise ValueError(f"{directory} is a link on the server's host: copy what it leads to from there")
    try:
        with os.fdopen(os.open(directory / "config.json", os.O_RDONLY | os.O_NOFOLLOW), encoding="utf-8") as file:
            about = json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{directory} is not a run directory on the server's host: {error}") from error
    if run_id not in [about.get("run_id"), *(entry.get("run_id") for entry in about.get("resumed", []))]:
        raise ValueError(f"{directory} is the run directory of the run {about.get('run_id')}, not {run_id}")


def lines_of(directory: Path, largest_mb: float, total_mb: float, most_files: int) -> Iterator[str]:
    """Yield the lines that carry a run directory.

    Parameters
    ----------
    directory : Path
        The run directory.
    largest_mb : float
        A file larger than this (in 10^6 bytes) is only named.
    total_mb, most_files : float, int
        The limits of all files together.

    Raises
    ------
    ValueError
        When there is more; nothing is sent then.
    """
    largest = largest_mb * 1e6
    sizes = [about.st_size for _, about, _, _ in _entries(directory) if not _why_left(about, largest)]
    if sum(sizes) > total_mb * 1e6 or len(sizes) > most_files:
        raise ValueError(
            f"{directory} has {sum(sizes) / 1e6:,.1f} MB in {len(sizes)} files, but the receiver takes at most "
            f"--total-mb = {total_mb:g} and {most_files} files: give a larger --total-mb or a smaller --largest-mb"
        )
    sent = 0
    for path, about, name, folder in _entries(directory):
        reason = _why_left(about, largest)
        if reason:
            yield _line("left", {"path": path, "bytes": about.st_size, "why": reason})
            continue
        descriptor = _open(name, folder)
        if descriptor is not None:
            sent += 1
            yield from _lines_of_file(path, descriptor)
    yield _line("end", {"files": sent})


def _entries(directory: Path) -> Iterator[tuple[str, os.stat_result, str, int]]:
    """Yield everything in a run directory except folders and working files, without following any link.

    A tuple has the path in the directory, the status, and the name in its folder with the folder's descriptor: a folder
    that is exchanged for a link meanwhile leads nowhere.
    """
    for root, folders, names, descriptor in os.fwalk(directory, onerror=_raise_unless_gone):
        place = Path(root).relative_to(directory)
        working = (*WORKING_FOLDERS, *_WORKING_FILES) if place == Path() else ()
        folders[:], names[:] = (sorted(n for n in each if not _is_working(n, working)) for each in (folders, names))
        for name in [*folders, *names]:
            try:
                about = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            except FileNotFoundError:  # a run that goes on removes files
                continue
            if not stat.S_ISDIR(about.st_mode):
                yield (place / name).as_posix(), about, name, descriptor


def _is_working(name: str, working: tuple[str, ...]) -> bool:
    return name in working or name.startswith(".") or name.endswith(_PARTIAL)


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _why_left(about: os.stat_result, largest: float) -> str:
    """Return why a file is not sent; empty if it is sent."""
    if stat.S_ISLNK(about.st_mode) or (stat.S_ISREG(about.st_mode) and about.st_nlink > 1):
        return _LINK
    if not stat.S_ISREG(about.st_mode):
        return _SPECIAL
    return _TOO_LARGE if about.st_size > largest else ""


def _open(name: str, folder: int) -> int | None:
    """Open a file that is still plain; None if it is gone, or was exchanged for a link or a pipe."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError:
        return None
    if _why_left(os.fstat(descriptor), float("inf")):
        os.close(descriptor)
        return None
    return descriptor


def _lines_of_file(path: str, descriptor: int) -> Iterator[str]:
    """Yield the lines of a file, as long as it is now: a log that grows meanwhile is cut there."""
    with os.fdopen(descriptor, "rb") as file:
        left = os.fstat(descriptor).st_size
        digest = hashlib.sha256()
        yield _line("file", {"path": path, "bytes": left})
        while chunk := file.read(min(left, _CHUNK_BYTES)):
            left -= len(chunk)
            digest.update(chunk)
            yield f"{MARK} data {base64.b64encode(chunk).decode('ascii')}"
    yield _line("done", {"path": path, "sha256": digest.hexdigest()})


def _line(kind: str, about: dict[str, object]) -> str:
    return f"{MARK} {kind} {json.dumps(about)}"
