"""`fedddpm fetch`: the run directory of a deployed run, brought to this machine."""

import base64
import binascii
import hashlib
import json
import re
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, BinaryIO

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from fedddpm_app.cli.common import FAILED, console, refuse, say
from fedddpm_app.cli.console import print_summary
from fedddpm_app.config import ConfigError, Scalar
from fedddpm_app.launch import delivery
from fedddpm_app.launch.flower_run import COMPLETED, FlowerRun, check_connection, write_app
from fedddpm_app.recording.recorder import check_is_new, make_directory

SuperlinkOption = Annotated[
    str, typer.Option("--superlink", metavar="NAME", help="A connection of Flower's config.toml.")
]
LargestOption = Annotated[float, typer.Option(min=0, help="Leave larger files on the server, in MB.")]
LARGEST_MB = 200.0
DIRECTORY_MARK = "run directory: "


class FetchError(RuntimeError):
    """Files that did not come, or not as they were."""


def fetch(
    run_id: Annotated[str, typer.Argument(help="As `flwr run` or `flwr ls` shows it.")],
    superlink: SuperlinkOption = "",
    out: Annotated[Path, typer.Option(help="The run's folder is made in it.")] = Path("runs"),
    largest_mb: LargestOption = LARGEST_MB,
) -> None:
    """Bring the run directory of a deployed run to this machine, through the connection that starts runs."""
    if not run_id.isdigit():
        refuse(f"RUN_ID = {run_id}: give the number that `flwr ls` shows.")
    run = FlowerRun.of(run_id, superlink)
    try:
        check_connection(superlink)
        log, status = list(run.log()), run.status()
        directory = _place(out, find_directory(log), run_id)
        (directory / "log.txt").write_text("\n".join(log) + "\n", encoding="utf-8")
        fetch_into(directory, run, find_directory(log), largest_mb)
    except (ConfigError, FetchError) as error:
        say(str(error))
        raise typer.Exit(FAILED) from error
    if (directory / "summary.json").exists():
        print_summary(directory, console)
    else:
        say(f"the run has no summary yet; Flower says {status}. Fetch it again when it has ended.")
        say(f"run directory: {directory}")


def _place(out: Path, on_server: str, run_id: str) -> Path:
    """Return the folder for a run's files, made: a new one, or one that has some of this run's files already."""
    name = on_server.rsplit("/", 1)[-1]
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise FetchError(f"the run's folder is {on_server}, whose name is refused here.")
    directory = out / name
    try:
        mine = json.loads((directory / "config.json").read_text(encoding="utf-8")).get("run_id") == run_id
    except (OSError, ValueError, AttributeError):
        mine = False
    if not mine:
        check_is_new(directory)
    if not make_directory(directory) and not mine and {path.name for path in directory.iterdir()} - {"log.txt"}:
        raise FetchError(f"{directory} holds something else: give another folder by --out.")
    return directory


def find_directory(log: Iterable[str]) -> str:
    """Return the folder on the server's host that a run's log names.

    Raises
    ------
    FetchError
        When it names none.
    """
    found = [line.partition(DIRECTORY_MARK)[2].strip() for line in log if DIRECTORY_MARK in line]
    if not found:
        raise FetchError("the run has no run directory: it does not exist, or failed before it made one; see its log.")
    return found[-1]


def fetch_into(directory: Path, run: FlowerRun, on_server: str, largest_mb: float = LARGEST_MB) -> None:
    """Fetch the files of a run, whose folder on the server's host is ``on_server``.

    Raises
    ------
    FetchError
        When they do not all come as they are there; what came is kept.
    """
    with tempfile.TemporaryDirectory(prefix="fedddpm-delivery-") as name:
        given: dict[str, Scalar] = {"directory": on_server, "of-run": str(run.run_id), "largest-mb": float(largest_mb)}
        source = Path(delivery.__file__).read_text(encoding="utf-8")
        write_app(Path(name), "delivery", source, "app", "app", dict.fromkeys(given, "") | {"largest-mb": largest_mb})
        courier = FlowerRun(Path(name), given, {}, run.connection)
        parcel = Parcel(directory)
        with Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=console,
            disable=not console.is_terminal,
        ) as progress:  # fmt: skip
            bar = progress.add_task("fetching", total=None)
            for line in courier.lines():
                parcel.take(line)
                progress.update(bar, completed=parcel.num_bytes)
        status = courier.status()
    if status != COMPLETED or not parcel.is_complete:
        raise FetchError(
            f"the files of the run {run.run_id} did not all come (the delivery ended as {status}{parcel.last_words}); "
            f"try again, or copy {on_server} from the server's host."
        )
    for path, size in parcel.left.items():
        say(f"left on the server, as it is larger than {largest_mb:g} MB: {on_server}/{path} ({size / 1e6:,.1f} MB)")


@dataclass
class Parcel:
    """Puts the files together that ``delivery`` sends; the server is not trusted with this machine's paths.

    Attributes
    ----------
    directory : Path
        Where the files go.
    num_bytes : int
        What has come.
    left : dict of str to int
        Files that were not sent, with their sizes.
    is_complete : bool
        Whether all files came.
    """

    directory: Path
    num_bytes: int = 0
    left: dict[str, int] = field(default_factory=dict)
    is_complete: bool = False
    _file: BinaryIO | None = None
    _digest: Any = None
    _received: int = 0
    _said: str = ""

    @property
    def last_words(self) -> str:
        """What the last line said that was no file, where it says an error."""
        return f": {self._said}" if "Error" in self._said else ""

    def take(self, line: str) -> None:
        """Take a line of the log."""
        _, found, text = line.partition(f"{delivery.MARK} ")
        if not found:
            self._said = line.strip() if "Error" in line else self._said
            return
        what, _, rest = text.partition(" ")
        try:
            if what == "data":
                self._append(base64.b64decode(rest, validate=True))
            else:
                self._obey(what, json.loads(rest))
        except (binascii.Error, ValueError, LookupError, TypeError) as error:
            raise FetchError(f"the delivery cannot be read: {error}; try again.") from error
        except OSError as error:
            raise FetchError(f"{self.directory} cannot be written: {error}.") from error

    def _obey(self, what: str, about: dict[str, Any]) -> None:
        if what == "file":
            path = self._path(about["path"])
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file, self._digest = path.with_name(f"{path.name}.partial").open("wb"), hashlib.sha256()
        elif what == "done" and self._file is not None:
            self._file.close()
            if self._digest.hexdigest() != about["sha256"]:
                raise FetchError(f"{about['path']} did not come as it was sent; try again.")
            path = self._path(about["path"])
            path.with_name(f"{path.name}.partial").replace(path)
            self._file, self._received = None, self._received + 1
        elif what == "left":
            self.left[str(about["path"])] = int(about["bytes"])
        elif what == "end":
            self.is_complete = about["files"] == self._received

    def _append(self, chunk: bytes) -> None:
        if self._file is None:
            raise FetchError("the delivery cannot be read: data of no file; try again.")
        self._file.write(chunk)
        self._digest.update(chunk)
        self.num_bytes += len(chunk)

    def _path(self, name: str) -> Path:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts:
            raise FetchError(f"the server sent a file with the name {name}, which is refused.")
        return self.directory.joinpath(*parts)
