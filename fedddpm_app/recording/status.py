"""The status of a run in its ``summary.json``, which stays true although its process may end at any time.

A run is ``running`` from its start; at its end it is ``completed``, ``failed`` (``error`` has the reason) or
``interrupted`` (``stopped_by`` has the cause). ``owner`` names the server's process: ``pid``, ``started`` and ``host``.
This process holds the lock of the folder while it runs. Whoever reads ``running`` without a living process on this host
corrects it to ``failed``.
"""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil

from fedddpm_app.owned import LOCK, OwnerLock
from fedddpm_app.recording.files import RecordingError, rewrite_json, write_json

SUMMARY = "summary.json"
RUNNING, COMPLETED, FAILED, INTERRUPTED, UNKNOWN = "running", "completed", "failed", "interrupted", "unknown"
STOP_SIGNAL = "Flower: `flwr stop`, a signal to the server's process, or a crash of the simulation"
_RESERVE = "reserve.bin"  # room for the last summary on a disk that is full by then
_RESERVE_BYTES = 64 * 1024
_ATTEMPTS = 20
_SIGNAL_CODES = 128  # added to the number of a signal that ended a process
_SAME_START_SECONDS = 1.0  # the clock of a process's start has a coarse resolution


@dataclass(frozen=True)
class Status:
    """The status of a run.

    Attributes
    ----------
    directory : Path
        The run directory.
    state : str
        ``running``, ``completed``, ``failed`` or ``interrupted``; ``unknown`` without a readable ``summary.json``.
    summary : mapping
        The content of ``summary.json``; empty if ``unknown``.
    """

    directory: Path
    state: str
    summary: Mapping[str, object] = field(default_factory=dict)

    @property
    def is_final(self) -> bool:
        """Whether the run has ended."""
        return self.state in (COMPLETED, FAILED, INTERRUPTED)

    @property
    def error(self) -> str:
        """The reason of a failed run; empty without one."""
        return str(self.summary.get("error", ""))

    @property
    def ended(self) -> datetime | None:
        """The time of the end, with its time zone; None if it is unknown."""
        try:
            return datetime.fromisoformat(str(self.summary["ended"]))
        except (LookupError, ValueError):
            return None

    @property
    def seconds_since_end(self) -> float:
        """The seconds since the end of the run; 0 if it has not ended or the time is unknown."""
        return max(0.0, (datetime.now(UTC) - self.ended).total_seconds()) if self.is_final and self.ended else 0.0


def read_status(directory: Path, has_ended: bool = False) -> Status:
    """Return the status of a run. If its process has died on this host, first correct ``summary.json``.

    Parameters
    ----------
    directory : Path
        The run directory.
    has_ended : bool
        Whether Flower reports that the run has ended, for the copy of a run directory of another host.
    """
    summary = _read(directory)
    if summary.get("status") == RUNNING and (has_ended or _has_died(directory, summary)):
        summary = _read(directory)  # the run may have ended in between
        if summary.get("status") == RUNNING:
            summary |= {"status": FAILED, "error": _without_a_word(summary.pop("owner", None)), "ended": now()}
            with contextlib.suppress(RecordingError):  # then the next reader corrects it
                rewrite_json(directory / SUMMARY, summary)
    return Status(directory, str(summary.get("status", UNKNOWN)), summary)


def is_locked(directory: Path) -> bool:
    """Return whether a process holds a run's folder, on this or another host; True without locks that would say so."""
    lock = OwnerLock(directory / LOCK)
    try:
        free = lock.acquire()
    except OSError:
        return True
    lock.release()
    return not free


def mark_interrupted(directory: Path, stopped_by: str, since: datetime) -> None:
    """Set the status of a stopped run to ``interrupted``, unless it had ended before.

    A stop may end the clients before the server, which then fails. The run is interrupted then too, and keeps the
    error. A run that failed before ``since``, the time of the stop, stays failed.
    """
    summary = _read(directory)
    status = Status(directory, str(summary.get("status", UNKNOWN)), summary)
    by_the_stop = status.state != COMPLETED and status.ended is not None and status.ended >= since
    if status.is_final and not by_the_stop:
        return
    summary.pop("owner", None)
    about = {"status": INTERRUPTED, "stopped_by": stopped_by, "ended": now(), "directory": str(directory)}
    rewrite_json(directory / SUMMARY, {**summary, **about})


def name_of_stop(stop: BaseException) -> str:
    """Return the cause of a ``KeyboardInterrupt`` or a ``SystemExit`` as a text for ``stopped_by``."""
    if isinstance(stop, KeyboardInterrupt):
        return "Ctrl-C"
    code = stop.code if isinstance(stop, SystemExit) else None
    names = {_SIGNAL_CODES + number: number.name for number in signal.Signals} | {
        _SIGNAL_CODES + signal.SIGINT: "Ctrl-C"
    }
    return names.get(code, STOP_SIGNAL) if isinstance(code, int) else STOP_SIGNAL


def now() -> str:
    """Return the time as a text with its time zone."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class StatusFile:
    """The server's half: it marks the run as running, and at its end, once, as ended.

    Parameters
    ----------
    directory : Path
        The run directory.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = OwnerLock(directory / LOCK)
        self._writing = threading.RLock()  # a signal handler may end the run in another thread, or in this one
        self._ended = False

    def begin(self) -> bool:
        """Take the folder, keep some room for the last summary, and write the status ``running``.

        It returns False, and writes nothing, if another process holds the folder.

        Raises
        ------
        RecordingError
            When the folder cannot be written.
        """
        with contextlib.suppress(OSError):  # a file system without locks; the process id remains
            if not self._take():
                return False
        process = psutil.Process()
        owner = {"pid": process.pid, "started": process.create_time(), "host": socket.gethostname()}
        about = {"status": RUNNING, "owner": owner, "directory": str(self.directory)}
        write_json(self.directory / SUMMARY, about)
        with contextlib.suppress(OSError):
            (self.directory / _RESERVE).write_bytes(os.urandom(_RESERVE_BYTES))  # no file system stores it in less
        return True

    def _take(self) -> bool:
        """Take the lock; a reader of the status holds it for an instant, so try for a second."""
        for _ in range(_ATTEMPTS):
            if self._lock.acquire():
                return True
            time.sleep(1 / _ATTEMPTS)
        return False

    def end(self, summary: Mapping[str, object]) -> None:
        """Write the last summary, and release the folder; only the first call counts.

        Raises
        ------
        RecordingError
            When it cannot be written; a shorter summary then says that the run failed, if there is room for that.
        """
        with self._writing:
            if self._ended:
                return
            (self.directory / _RESERVE).unlink(missing_ok=True)
            about = {"ended": now(), "directory": str(self.directory)}
            try:
                rewrite_json(self.directory / SUMMARY, {**summary, **about})
            except RecordingError as error:
                first = str(summary.get("error") or error)
                with contextlib.suppress(RecordingError):
                    rewrite_json(self.directory / SUMMARY, {"status": FAILED, "error": first, **about})
                raise
            finally:
                self._ended = True
                self._lock.release()
                self._lock.path.unlink(missing_ok=True)


def _read(directory: Path) -> dict[str, object]:
    try:
        summary = json.loads((directory / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing, or not complete
        return {}
    return summary if isinstance(summary, dict) else {}


def _has_died(directory: Path, summary: Mapping[str, object]) -> bool:
    """Return whether the owner of a running run was on this host, and has ended."""
    owner = summary.get("owner")
    if not isinstance(owner, dict) or owner.get("host") != socket.gethostname():
        return False
    if summary.get("directory") == str(directory) and (directory / LOCK).exists():
        lock = OwnerLock(directory / LOCK)
        try:
            free = lock.acquire()
            lock.release()
        except OSError:  # no locks on this file system, or the folder of another user
            return not _lives(owner)
        return free
    return not _lives(owner)  # a copy of the folder, or a folder that was moved


def _lives(owner: Mapping[str, object]) -> bool:
    try:
        process = psutil.Process(int(str(owner["pid"])))
        same = abs(process.create_time() - float(str(owner["started"]))) < _SAME_START_SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except (psutil.Error, LookupError, ValueError):
        return False


def _without_a_word(owner: object) -> str:
    about = f"pid {owner.get('pid')} on {owner.get('host')}" if isinstance(owner, dict) else "unknown"
    return (
        f"the server's process ended without a word (killed, or out of memory?): {about}; see log.txt, and the "
        "system's log for an out-of-memory kill."
    )
