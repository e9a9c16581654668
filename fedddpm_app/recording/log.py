"""``log.txt`` of a run: plain lines, without colour codes."""

from pathlib import Path

from fedddpm_app.config import ConfigError
from fedddpm_app.progress import logger
from fedddpm_app.recording.directory import make_directory


class RunLog:
    """A run's ``log.txt``; a context manager. A disk that is full ends the log, but not the run.

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
        self.path = directory / "log.txt"
        self.error = ""
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
            logger.warning("%s is incomplete: it could not be written (%s)", self.path, self.error)

    def write(self, line: str) -> None:
        """Write one line; after the first failure nothing is written."""
        if self.error:
            return
        try:
            self._file.write(f"{line}\n")
        except OSError as error:
            self.error = str(error.strerror)
