"""The temporary Flower homes of simulations: who works in them, and how they end.

The command that creates a home holds its lock. If the command is killed, the run goes on: its results are not lost.
After the end of the run, ``guardian``, the next run or `fedddpm clean` stops what remains and removes the home.
"""

import contextlib
import json
import shutil
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from fedddpm_app.disk.bounded import read_object
from fedddpm_app.disk.owned import OwnedFolder, abandoned, remove_abandoned, taken_over
from fedddpm_app.progress import logger
from fedddpm_app.recording.status import Status, read_status
from fedddpm_app.transport.shared import PREFIX as SHARED_PREFIX
from fedddpm_app.transport.shared import ROOT as SHARED_MEMORY

LINGER_SECONDS = 60.0  # the longest time that Flower gets to end after the end of a run
PREFIX = "fedddpm-flwr-"
_RUN = "run.json"
_SERVER = "flwr-simulation"
_TERMINATE_SECONDS = 10.0  # then the remaining processes are killed
_GIVE_UP_SECONDS = 30.0
_STOP_POLL_SECONDS = 1.0


def create_home(directory: Path | None) -> OwnedFolder:
    """Create a home for a run with this run directory."""
    home = OwnedFolder.create(PREFIX)
    (home.path / _RUN).write_text(json.dumps({"directory": str(directory) if directory else None}), encoding="utf-8")
    return home


def status_of(home: Path) -> Status | None:
    """Return the status of a home's run; None if it has no run directory yet."""
    try:
        directory = read_object(home / _RUN)["directory"]
    except (OSError, ValueError, LookupError):
        return None
    return read_status(Path(directory)) if directory else None


def has_server(home: Path) -> bool:
    """Return whether the process of a home's ServerApp is alive."""
    return any(_is_server(process) for process in processes_of(home))


def headless(home: Path) -> bool:
    """Return whether the run of an abandoned home goes on; a run that Flower does not end after its end does not."""
    status = status_of(home)
    return has_server(home) and not (status and status.seconds_since_end > LINGER_SECONDS)


def headless_homes() -> list[Path]:
    """Return the homes of this user's runs that go on although their command was killed."""
    return [home for home in abandoned(PREFIX) if headless(home)]


def end_home(home: Path) -> bool:
    """Stop the processes of an abandoned home, remove it, and return whether it is gone."""
    with taken_over(home) as ours:
        if ours:
            stop_processes(home)
            status_of(home)  # corrects the status of a run that was killed
            shutil.rmtree(home, ignore_errors=True)
    return not home.exists()


def processes_of(home: Path) -> set[psutil.Process]:
    """Return the processes of a home and their children.

    Ray's agents overwrite their environment, so they can be found only as children, while their parent is alive.
    """
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get("FLWR_HOME") == str(home):
                found |= {process, *process.children(recursive=True)}
    return found - {psutil.Process()}


def stop_processes(home: Path, seen: Iterable[psutil.Process] = ()) -> None:
    """Stop every process of a home, and repeat: a stopping process may start another process.

    The server gets a Ctrl-C first: Ray replaces Flower's handler of SIGTERM, so that the server could not end in order.
    Weights in shared memory, which a killed server leaves, are removed. ``seen`` are processes that were found before:
    Ray's agents outlive a killed server and its raylet, and cannot be found without them.
    """
    began = time.monotonic()
    known: set[psutil.Process] = set()
    while True:
        new = (processes_of(home) | {*seen}) - known
        known |= new
        alive = [process for process in known if _is_running(process)]
        waited = time.monotonic() - began
        if alive and waited > _GIVE_UP_SECONDS:
            logger.warning("processes are still alive: %s", ", ".join(f"pid {process.pid}" for process in alive))
        if not alive or waited > _GIVE_UP_SECONDS:
            break
        for process in alive:
            with contextlib.suppress(psutil.Error):
                if waited > _TERMINATE_SECONDS:
                    process.kill()
                elif not _is_server(process):
                    process.terminate()
                elif process in new:
                    process.send_signal(signal.SIGINT)
        psutil.wait_procs(alive, timeout=_STOP_POLL_SECONDS)
    remove_abandoned(SHARED_PREFIX, SHARED_MEMORY)


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _is_server(process: psutil.Process) -> bool:
    try:
        return any(_SERVER in word for word in process.cmdline())
    except psutil.Error:
        return False
