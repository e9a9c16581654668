"""`fedddpm fetch`: copy the run directory of a deployed run to this machine."""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from fedddpm_app import limits
from fedddpm_app.cli.common import FAILED, console, refuse, say
from fedddpm_app.cli.options import LARGEST_MB
from fedddpm_app.cli.result_tables import print_summary
from fedddpm_app.config import ConfigError, Scalar, shown
from fedddpm_app.disk.bounded import read_object
from fedddpm_app.disk.owned import OwnedFolder
from fedddpm_app.disk.placing import move_into
from fedddpm_app.disk.private import private_umask
from fedddpm_app.launch import delivery
from fedddpm_app.launch.connection import check_connection
from fedddpm_app.launch.delivery import LOG
from fedddpm_app.launch.flower_run import COMPLETED, FlowerRun, has_ended, write_app
from fedddpm_app.launch.leftovers import DELIVERY_PREFIX, INCOMING_PREFIX
from fedddpm_app.launch.receiver import FetchError, FileReceiver
from fedddpm_app.progress import parse_directory
from fedddpm_app.recording.directory import check_is_new, make_directory
from fedddpm_app.recording.files import RecordingError, writing
from fedddpm_app.recording.layout import CONFIG
from fedddpm_app.recording.status import read_status

_LINE_COST = 64  # bytes that Python takes for a line, beside its characters


def fetch(run_id: str, superlink: str, out: Path, largest_mb: float, total_mb: float) -> None:
    """Copy the run directory of a deployed run; ``commands.fetch`` describes the arguments."""
    if not run_id.isdigit():
        refuse(f"RUN_ID = {run_id}: give the number that `flwr ls` shows.")
    run = FlowerRun.of(run_id, superlink)
    try:
        check_connection(superlink)
        log, status = _read_log(run), run.status()
        on_server = find_directory(log)
        with private_umask():
            directory = _make_run_folder(out, on_server, run_id)
            _write_log(directory, log)
            fetch_into(directory, run, on_server, largest_mb, total_mb)
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
    if directory.is_symlink():
        raise FetchError(f"{directory} is a link, and nothing is written through it: give another folder with --out.")
    same_run = _holds_files_of(directory, run_id)
    if not same_run:
        check_is_new(directory)
    if not make_directory(directory) and not same_run and {path.name for path in directory.iterdir()} - {LOG}:
        raise FetchError(f"{directory} holds something else: give another folder with --out.")
    return directory


def _holds_files_of(directory: Path, run_id: str) -> bool:
    """Return whether a folder holds files of the run ``run_id``, which may also be a later process of the same run."""
    try:
        about = read_object(directory / CONFIG)
        return run_id in [about.get("run_id"), *(entry.get("run_id") for entry in about.get("resumed", []))]
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def _read_log(run: FlowerRun) -> list[str]:
    """Return the lines of a run's log."""
    lines, length = [], 0
    for line in run.log():
        lines.append(line)
        length += len(line) + _LINE_COST
        if length > limits.LOG_CHARACTERS:
            raise FetchError(f"the server sent a log of more than {limits.LOG_CHARACTERS:,} characters: refused.")
    return lines


def _write_log(directory: Path, log: list[str]) -> None:
    """Write a run's log to its folder, and not through a link there."""
    with writing(directory / LOG), OwnedFolder.create(INCOMING_PREFIX, directory.parent) as incoming:
        (incoming / LOG).write_text("\n".join(log) + "\n", encoding="utf-8")
        move_into(incoming / LOG, directory, PurePosixPath(LOG))


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
    if not found[-1].isprintable() or len(found[-1]) > limits.DELIVERY_NAME:
        raise FetchError(f"the log names the run directory {shown(found[-1])}, which is refused.")
    return found[-1]


def fetch_into(
    directory: Path,
    run: FlowerRun,
    on_server: str,
    largest_mb: float = LARGEST_MB,
    total_mb: float = limits.DELIVERY_MB,
) -> None:
    """Fetch the files of a run from its folder ``on_server`` on the server's host; all of them, or none.

    Raises
    ------
    FetchError
        When a file is refused, or does not arrive unchanged.
    """
    given: dict[str, Scalar] = {
        "directory": on_server,
        "of-run": str(run.run_id),
        "largest-mb": float(largest_mb),
        "total-mb": float(total_mb),
        "most-files": limits.DELIVERY_FILES,
    }
    try:
        with private_umask(), OwnedFolder.create(INCOMING_PREFIX, directory.parent) as incoming:
            receiver = FileReceiver(incoming / "files", total_mb)
            status = _receive(receiver, given, run.connection)
            if status != COMPLETED or not receiver.is_complete:
                raise FetchError(
                    f"the files of the run {run.run_id} did not all arrive (the delivery ended as {status}"
                    f"{receiver.error_suffix}); try again, or copy {on_server} from the server's host."
                )
            receiver.move_to(directory)
    except OSError as error:
        raise FetchError(f"the files of the run {run.run_id} are not taken over: {error}.") from error
    for path, file in receiver.left.items():
        say(f"left on the server, because {file.reason}: {on_server}/{path} ({file.num_bytes / 1e6:,.1f} MB)")


def _receive(receiver: FileReceiver, given: dict[str, Scalar], connection: str) -> str:
    """Have the server's host send a run directory, and return the status that Flower reports at the end."""
    with OwnedFolder.create(DELIVERY_PREFIX) as folder:
        source = Path(delivery.__file__).read_text(encoding="utf-8")
        defaults = {key: "" if isinstance(value, str) else value for key, value in given.items()}
        write_app(folder, "delivery", source, "app", "app", defaults)
        run = FlowerRun(folder, given, {}, connection)
        with Progress(
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=console,
            disable=not console.is_terminal,
        ) as progress:  # fmt: skip
            bar = progress.add_task("fetching", total=None)
            try:
                for line in run.lines():
                    receiver.take(line)
                    progress.update(bar, completed=receiver.num_bytes)
            finally:
                receiver.close()
                run.leave()
        return run.status()
