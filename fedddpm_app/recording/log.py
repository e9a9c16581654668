"""``log.txt`` of a run: plain lines, without colour codes."""

from pathlib import Path

from fedddpm_app.config import ConfigError
from fedddpm_app.limits import LOG_CHARACTERS
from fedddpm_app.progress import logger
from fedddpm_app.recording.directory import make_directory
from fedddpm_app.recording.layout import LOG


class RunLog:
    """A run's ``log.txt``; a context manager.

    A disk that is full, or a server that writes without end, ends the log, and not the run.

    Parameters
    ----------
    directory : Path
        The run's folder; it is created if needed. The caller that opens its log first owns the folder.
    resumed : bool
        Whether lines are added to the log of a run that is resumed.

    Attributes
    ----------
    path : Path
        The file.
    error : str
        The reason why lines are missing; empty if the log is complete.

    Raises
    ------
    ConfigError
        When another run owns the folder.
    """

    def __init__(self, directory: Path, *, resumed: bool = False) -> None:
        make_directory(directory)
        self.path = directory / LOG
        self.error = ""
        self._left = LOG_CHARACTERS
        try:
            self._file = self.path.open("a" if resumed else "x", encoding="utf-8", errors="replace", buffering=1)
        except FileExistsError:
            raise ConfigError(
                f'run-name = "{directory.name}": {directory} holds a log.txt already; use another run-name or remove '
                "it."
            ) from None

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._file.close()
        except OSError as error:
            self.error = self.error or str(error.strerror)
        if self.error:
            logger.warning("%s is incomplete: it cannot hold all lines (%s)", self.path, self.error)

    def write(self, line: str) -> None:
        """Write one line; after the first failure, or the last character of the limit, nothing is written."""
        if self.error:
            return
        self._left -= len(line) + 1
        if self._left < 0:
            self.error = f"more than {LOG_CHARACTERS:,} characters"
            return
        try:
            self._file.write(f"{line}\n")
        except OSError as error:
            self.error = str(error.strerror)
