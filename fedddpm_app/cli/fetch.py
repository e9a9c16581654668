"""`fedddpm fetch`: copy the run directory of a deployed run to this machine."""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from fedddpm_app.cli.common import FAILED, console, refuse, say
from fedddpm_app.cli.console import print_summary
from fedddpm_app.cli.options import LARGEST_MB
from fedddpm_app.config import ConfigError, Scalar
from fedddpm_app.disk.durable import partial_of
from fedddpm_app.disk.owned import OwnedFolder
from fedddpm_app.launch import delivery
from fedddpm_app.launch.connection import check_connection
from fedddpm_app.launch.flower_run import COMPLETED, FlowerRun, has_ended, write_app
from fedddpm_app.launch.leftovers import DELIVERY_PREFIX
from fedddpm_app.progress import parse_directory
from fedddpm_app.recording.directory import check_is_new, make_directory
from fedddpm_app.recording.files import RecordingError, writing
from fedddpm_app.recording.reading import read_object
from fedddpm_app.recording.status import read_status


class FetchError(RuntimeError):
    """Files did not arrive, or did not arrive unchanged."""


def fetch(run_id: str, superlink: str, out: Path, largest_mb: float) -> None:
    """Copy the run directory of a deployed run; ``commands.fetch`` describes the arguments."""
    if not run_id.isdigit():
        refuse(f"RUN_ID = {run_id}: give the number that `flwr ls` shows.")
    run = FlowerRun.of(run_id, superlink)
    try:
        check_connection(superlink)
        log, status = list(run.log()), run.status()
        directory = _make_run_folder(out, find_directory(log), run_id)
        with writing(directory / "log.txt"):
            (directory / "log.txt").write_text("\n".join(log) + "\n", encoding="utf-8")
        fetch_into(directory, run, find_directory(log), largest_mb)
    except (ConfigError, FetchError, RecordingError) as error:
        say(str(error))
        raise typer.Exit(FAILED) from error
    if read_status(directory, has_ended(status)).is_final:
        print_summary(directory, console)
    else:
        say(f"the run has not ended; Flower reports {status}. Fetch it again after its end.")
        say(f"run directory: {directory}")


def _make_run_folder(out: Path, on_server: str, run_id: str) -> Path:
    """Make and return the folder for a run's files; it is new, or already holds files of the same run."""
    name = on_server.rsplit("/", 1)[-1]
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise FetchError(f"the run's folder on the server is {on_server}, and its name is refused here.")
    directory = out / name
    try:
        same_run = read_object(directory / "config.json").get("run_id") == run_id
    except (OSError, ValueError):
        same_run = False
    if not same_run:
        check_is_new(directory)
    if not make_directory(directory) and not same_run and {path.name for path in directory.iterdir()} - {"log.txt"}:
        raise FetchError(f"{directory} holds something else: give another folder with --out.")
    return directory


def find_directory(log: Iterable[str]) -> str:
    """Return a run's folder on the server's host, from the run's log.

    Raises
    ------
    FetchError
        When the log names no folder.
    """
    found = [named for line in log if (named := parse_directory(line))]
    if not found:
        raise FetchError(
            "the run has no run directory: the run does not exist, or it failed before it made its directory; see its "
            "log."
        )
    return found[-1]


def fetch_into(directory: Path, run: FlowerRun, on_server: str, largest_mb: float = LARGEST_MB) -> None:
    """Fetch the files of a run from its folder ``on_server`` on the server's host.

    Raises
    ------
    FetchError
        When a file does not arrive unchanged; the files that arrived are kept.
    """
    with OwnedFolder.create(DELIVERY_PREFIX) as folder:
        given: dict[str, Scalar] = {"directory": on_server, "of-run": str(run.run_id), "largest-mb": float(largest_mb)}
        source = Path(delivery.__file__).read_text(encoding="utf-8")
        write_app(folder, "delivery", source, "app", "app", dict.fromkeys(given, "") | {"largest-mb": largest_mb})
        delivery_run = FlowerRun(folder, given, {}, run.connection)
        receiver = FileReceiver(directory)
        with Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=console,
            disable=not console.is_terminal,
        ) as progress:  # fmt: skip
            bar = progress.add_task("fetching", total=None)
            for line in delivery_run.lines():
                receiver.take(line)
                progress.update(bar, completed=receiver.num_bytes)
        status = delivery_run.status()
    if status != COMPLETED or not receiver.is_complete:
        raise FetchError(
            f"the files of the run {run.run_id} did not all arrive (the delivery ended as {status}"
            f"{receiver.error_suffix}); try again, or copy {on_server} from the server's host."
        )
    for path, size in receiver.left.items():
        say(f"left on the server, larger than {largest_mb:g} MB: {on_server}/{path} ({size / 1e6:,.1f} MB)")


@dataclass
class FileReceiver:
    """Writes the files that ``delivery`` sends. It refuses file names that point outside the folder.

    Attributes
    ----------
    directory : Path
        The folder to write the files to.
    num_bytes : int
        Bytes received so far.
    left : dict of str to int
        Files that were not sent, with their sizes.
    is_complete : bool
        Whether all files arrived.
    """

    directory: Path
    num_bytes: int = 0
    left: dict[str, int] = field(default_factory=dict)
    is_complete: bool = False
    _file: BinaryIO | None = None
    _digest: Any = None
    _received: int = 0
    _error: str = ""

    @property
    def error_suffix(self) -> str:
        """The last error line of the log, as a suffix for a message; empty if there is none."""
        return f": {self._error}" if self._error else ""

    def take(self, line: str) -> None:
        """Process a line of the log."""
        mark, _, text = line.partition(" ")
        if mark != delivery.MARK:
            self._error = line.strip() if "Error" in line else self._error
            return
        kind, _, rest = text.partition(" ")
        try:
            if kind == "data":
                self._append(base64.b64decode(rest, validate=True))
            else:
                self._handle(kind, json.loads(rest))
        except (binascii.Error, ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
            raise FetchError(f"the delivery cannot be read: {error}; try again.") from error
        except OSError as error:
            raise FetchError(f"{self.directory} cannot be written: {error}.") from error

    def _handle(self, kind: str, about: dict[str, Any]) -> None:
        if kind == "file":
            path = self._path(about["path"])
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file, self._digest = partial_of(path).open("wb"), hashlib.sha256()
        elif kind == "done" and self._file is not None:
            self._file.close()
            if self._digest.hexdigest() != about["sha256"]:
                raise FetchError(f"{about['path']} did not arrive as it was sent; try again.")
            path = self._path(about["path"])
            partial_of(path).replace(path)
            self._file, self._received = None, self._received + 1
        elif kind == "left":
            self.left[str(about["path"])] = int(about["bytes"])
        elif kind == "end":
            self.is_complete = about["files"] == self._received

    def _append(self, chunk: bytes) -> None:
        if self._file is None:
            raise FetchError("the delivery cannot be read: its data belong to no file; try again.")
        self._file.write(chunk)
        self._digest.update(chunk)
        self.num_bytes += len(chunk)

    def _path(self, name: str) -> Path:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts:
            raise FetchError(f"the server sent a file with the name {name}, which is refused.")
        return self.directory.joinpath(*parts)
