"""The server's half of a run's status: it marks the run as running, and at its end, once, as ended."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from fedddpm_app.config import ConfigError
from fedddpm_app.disk.owned import LOCK, OwnerLock
from fedddpm_app.recording.files import RecordingError, rewrite_json, write_json
from fedddpm_app.recording.layout import SUMMARY
from fedddpm_app.recording.owner import this_process
from fedddpm_app.recording.status import COMPLETED, FAILED, RUNNING, now

RESERVE = "reserve.bin"  # room for the last summary on a disk that is full by then
_RESERVE_BYTES = 64 * 1024
_ATTEMPTS = 20


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

    def begin(self, check: Callable[[], None] = lambda: None) -> None:
        """Take the folder, keep some room for the last summary, and write the status ``running``.

        ``check`` is called while nobody else can take the folder; if it raises, nothing is written.

        Raises
        ------
        ConfigError
            When another process holds the folder; nothing is written then.
        RecordingError
            When the folder cannot be written.
        """
        with contextlib.suppress(OSError):  # a file system without locks; the process id remains
            if not self._take():
                raise ConfigError(f"{self.directory} is still running: another process holds it; stop it first.")
        about = {"status": RUNNING, "owner": this_process(self.directory), "directory": str(self.directory)}
        try:
            check()
            write_json(self.directory / SUMMARY, about)
        except (ConfigError, RecordingError):
            self._lock.release(remove=True)
            raise
        with contextlib.suppress(OSError):
            (self.directory / RESERVE).write_bytes(os.urandom(_RESERVE_BYTES))  # no file system stores it in less

    def _take(self) -> bool:
        """Take the lock; a reader of the status holds it for an instant, so try for a second."""
        for _ in range(_ATTEMPTS):
            if self._lock.acquire():
                return True
            time.sleep(1 / _ATTEMPTS)
        return False

    def end(self, summary: Mapping[str, object], releases: bool = True) -> None:
        """Write the last summary; only the first call counts. Release the folder, or keep it until this process ends.

        Raises
        ------
        RecordingError
            When it cannot be written; a shorter summary, in which a complete run failed, is then written if it fits.
        """
        with self._writing:
            if self._ended:
                return
            with contextlib.suppress(OSError):
                (self.directory / RESERVE).unlink()
            about = {"ended": now(), "directory": str(self.directory)}
            try:
                rewrite_json(self.directory / SUMMARY, {**summary, **about})
            except RecordingError as error:
                reason = {key: summary[key] for key in ("status", "error", "stopped_by") if key in summary}
                if summary["status"] == COMPLETED:
                    reason = {"status": FAILED, "error": str(error)}
                with contextlib.suppress(RecordingError):
                    rewrite_json(self.directory / SUMMARY, reason | about)
                raise
            finally:
                self._ended = True
                if releases:
                    self._lock.release(remove=True)
