"""Writing the files of a run: a disk that is full gives one sentence, and costs no more than the file."""

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from fedddpm_app import limits
from fedddpm_app.config import first_line
from fedddpm_app.disk.bounded import check_size
from fedddpm_app.disk.durable import replacing
from fedddpm_app.progress import logger

_BLOCK_BYTES = 1 << 16


class RecordingError(OSError):
    """A file of the run directory cannot be written; the message is one sentence with the fix."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise ``RecordingError`` in place of the errors of the body, which writes ``path``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error).rpartition("I/O error: ")[2]
        raise RecordingError(
            f"{path} cannot be written ({reason}): free some space there, or write to another folder."
        ) from error


@contextmanager
def needing_room(folder: Path) -> Iterator[None]:
    """Raise ``RecordingError`` in place of an error of the body that says that a disk or a quota is full.

    ``folder`` is where the body writes, as far as it is known.
    """
    try:
        yield
    except RecordingError:
        raise
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        with writing(Path(getattr(error, "filename", None) or folder)):
            raise


@contextmanager
def optional(path: Path) -> Iterator[None]:
    """Log a warning in place of the errors of the body, which writes pictures to ``path``: no picture ends a run."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - for example of Matplotlib, for values that it has no axis for
        logger.warning("%s: pictures cannot be written: %s", path, getattr(error, "strerror", None) or error)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write an object as JSON, and create the folder if needed; NaN becomes null. The file is complete or not changed.

    Raises
    ------
    RecordingError
        When it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as work:
            work.write_text(_to_text(content), encoding="utf-8")


def keep_lines(path: Path, count: int) -> list[dict[str, object]]:
    """Keep the first lines of a file with one JSON object per line, remove the others, and return the objects.

    Raises
    ------
    RecordingError
        When the file has fewer complete lines, or cannot be changed.
    """
    with writing(path):
        path.touch()
        with path.open("rb+") as file:
            lines = [file.readline() for _ in range(count)]
            file.truncate(file.tell())
    try:
        return [_object_of(line) for line in lines]
    except ValueError as error:
        raise RecordingError(f"{path} has fewer than {count} complete lines: restore it from a backup.") from error


def read_lines(path: Path) -> list[dict[str, object]]:
    """Return the objects of a file with one JSON object per line, without an unfinished last line; empty without it.

    Raises
    ------
    ValueError
        When a line is not JSON, or the file is larger than any of a run.
    """
    if not path.is_file():
        return []
    check_size(path, limits.LINES_BYTES)
    with path.open("rb") as file:
        length = _end_of_lines(file)
        file.seek(0)
        return [_object_of(line) for line in file.read(length).splitlines()]


def _object_of(line: bytes) -> dict[str, object]:
    try:
        found: dict[str, object] = json.loads(line)
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error
    return found


def rewrite_json(path: Path, content: Mapping[str, object]) -> None:
    """Write an object as ``write_json`` does; on a full disk, write it over the old content, which has room already.

    Raises
    ------
    RecordingError
        When it cannot be written; the old content is then kept.
    """
    try:
        write_json(path, content)
    except RecordingError:
        if not path.is_file():
            raise
        with writing(path):
            _write_over(path, _to_text(content).encode())


def append_line(path: Path, content: Mapping[str, object]) -> None:
    """Append an object as one line of JSON, and wait until it is on the disk; NaN becomes null.

    The file has complete lines only: an unfinished last line of a killed process is removed first, and a line that does
    not fit on the disk is removed again.

    Raises
    ------
    RecordingError
        When the line cannot be written.
    """
    line = json.dumps(without_nan(content)).encode() + b"\n"
    with writing(path), path.open("ab+", buffering=0) as file:
        length = _end_of_lines(file)
        file.truncate(length)
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(length)  # which needs no room
            raise


def _end_of_lines(file: IO[bytes]) -> int:
    """Return the length of a file's complete lines, in bytes."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - _BLOCK_BYTES)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _write_over(path: Path, text: bytes) -> None:
    """Write over a file's content; if the new content does not fit, restore the old content."""
    before = path.read_bytes()
    with path.open("rb+", buffering=0) as file:
        try:
            if file.write(text) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            file.truncate(len(text))
        except OSError:
            file.seek(0)
            file.write(before)
            file.truncate(len(before))
            raise


def _to_text(content: Mapping[str, object]) -> str:
    return json.dumps(without_nan(content), indent=2) + "\n"


def without_nan(value: object) -> object:
    """Replace NaN and infinity by None, also in mappings and sequences."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value
