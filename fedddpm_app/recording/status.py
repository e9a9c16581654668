"""The status of a run in its ``summary.json``, which stays true although its process may end at any time.

A run is ``running`` from its start; at its end it is ``completed``, ``failed`` (``error`` has the reason) or
``interrupted`` (``stopped_by`` has the cause). ``owner`` names the server's process, see ``owner``. Whoever reads
``running`` without a living process on this machine corrects it to ``failed``.
"""

import contextlib
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedddpm_app.disk.bounded import read_object
from fedddpm_app.disk.owned import LOCK, is_held
from fedddpm_app.recording.files import RecordingError, rewrite_json
from fedddpm_app.recording.layout import SUMMARY
from fedddpm_app.recording.owner import describe, has_died

RUNNING, COMPLETED, FAILED, INTERRUPTED, UNKNOWN = "running", "completed", "failed", "interrupted", "unknown"
STOP_SIGNAL = "Flower: `flwr stop`, a signal to the server's process, or a crash of the simulation"
_SIGNAL_CODES = 128  # added to the number of a signal that ended a process


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
    def owner(self) -> str:
        """The server's process of a running run, such as ``pid 7 on server``."""
        return describe(self.summary.get("owner"))

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
    if summary.get("status") == RUNNING and (has_ended or has_died(directory, summary.get("owner"))):
        summary = _read(directory)  # the run may have ended in between
        if summary.get("status") == RUNNING:
            summary |= {"status": FAILED, "error": _without_a_message(summary.pop("owner", None)), "ended": now()}
            with contextlib.suppress(RecordingError):  # then the next reader corrects it
                rewrite_json(directory / SUMMARY, summary)
    return Status(directory, str(summary.get("status", UNKNOWN)), summary)


def is_locked(directory: Path) -> bool:
    """Return whether a process holds a run's folder; True if its lock cannot be read."""
    try:
        return is_held(directory / LOCK)
    except OSError:
        return True


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


def _read(directory: Path) -> dict[str, Any]:
    try:
        return read_object(directory / SUMMARY)
    except (OSError, ValueError):  # missing, or not complete
        return {}


def _without_a_message(owner: object) -> str:
    return (
        f"the server's process ended without a message (killed, or out of memory?): {describe(owner)}; see log.txt, "
        "and the system's log for an out-of-memory kill."
    )
