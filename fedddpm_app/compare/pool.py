"""Runs the cells of a grid in processes, several at a time; an end of one does not end the others.

The processes are forked from a server that has imported the heavy packages once, because importing them takes longer
than a small run. Each process leaves in order when it gets SIGTERM, and when this process ends.
"""

import importlib
import multiprocessing
import os
import pkgutil
import signal
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from fedddpm_app.compare.cells import Cell
from fedddpm_app.disk.private import restrict_umask

_PACKAGE = "fedddpm_app"
_NOT_PRELOADED = (f"{_PACKAGE}.cli", f"{_PACKAGE}.compare", f"{_PACKAGE}.app_files")  # the first looks at its terminal
_LAST = f"{_PACKAGE}.compare.preload"
_LOOK_SECONDS = 0.5
_LEAVE_SECONDS = 120.0  # for a step, and the files of a run that is stopped


@dataclass(frozen=True)
class Running:
    """A cell that is running, its process, and the time of its start (of ``time.monotonic``)."""

    cell: Cell
    process: BaseProcess
    began: float

    def seconds(self) -> float:
        """Return the time since its start."""
        return time.monotonic() - self.began


class Watcher(Protocol):
    """Follows the work."""

    def started(self, running: Running) -> None:
        """Count a cell that starts."""

    def ended(self, running: Running, exit_code: int | None) -> None:
        """Count a cell whose process has ended."""

    def tick(self, running: Sequence[Running]) -> None:
        """Show the cells that are running; called about twice a second."""


def run_cells(cells: Iterable[Cell], jobs: int, work: str, app_dir: Path, watcher: Watcher) -> None:
    """Run cells in their order, ``jobs`` at a time. If an exception ends the call, the cells are stopped in order.

    Parameters
    ----------
    cells : iterable of Cell
        The cells.
    jobs : int
        At least 1.
    work : str
        The ``module:function`` that runs a cell, given the app's folder and the run's overrides; its process imports
        it.
    app_dir : Path
        The app's folder.
    watcher : Watcher
        Follows the work.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_modules(), "flwr_datasets", _LAST])
    waiting, running = iter(cells), list[Running]()
    try:
        while True:
            while len(running) < jobs and (cell := next(waiting, None)) is not None:
                arguments = (work, app_dir, cell.overrides, cell.log)
                process = context.Process(target=_work, args=arguments, name=cell.name)
                process.start()
                running.append(Running(cell, process, time.monotonic()))
                watcher.started(running[-1])
            if not running:
                return
            wait([each.process.sentinel for each in running], timeout=_LOOK_SECONDS)
            for each in [each for each in running if not each.process.is_alive()]:
                each.process.join()
                running.remove(each)
                watcher.ended(each, each.process.exitcode)
            watcher.tick(running)
    finally:
        _stop(running)


def _modules() -> list[str]:
    """Return the modules of this package for all cells, so that a change of its files does not reach later cells."""
    names = [
        module.name for module in pkgutil.walk_packages(importlib.import_module(_PACKAGE).__path__, f"{_PACKAGE}.")
    ]
    return [name for name in names if not name.startswith(_NOT_PRELOADED)]


def _stop(running: Sequence[Running]) -> None:
    """Stop the processes in order; kill those that do not end."""
    for each in running:
        each.process.terminate()
    deadline = time.monotonic() + _LEAVE_SECONDS
    for each in running:
        each.process.join(max(0.0, deadline - time.monotonic()))
        if each.process.is_alive():
            each.process.kill()
            each.process.join()


def _work(work: str, app_dir: Path, overrides: dict[str, object], log: Path) -> None:
    """Run a cell in this process: its output goes to a file, also that of libraries."""
    restrict_umask()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab", buffering=0) as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
            stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    module, _, name = work.partition(":")
    getattr(importlib.import_module(module), name)(app_dir, overrides)  # only now, so that consoles are not terminals


def _leave_with_parent() -> None:
    """Wait for the end of the command, then stop this process in order."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
