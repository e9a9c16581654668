"""Writing the files of a run: a disk that is full gives one sentence, and costs no more than the file."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from fedddpm_app.config import first_line
from fedddpm_app.progress import logger


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
def optional(path: Path) -> Iterator[None]:
    """Log a warning in place of the errors of the body, which writes pictures to ``path``."""
    try:
        yield
    except OSError as error:
        logger.warning("%s: pictures cannot be written: %s", path, error.strerror or error)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write an object as JSON, and create the folder if needed; NaN becomes null. The file is complete or not changed.

    Raises
    ------
    RecordingError
        When it cannot be written.
    """
    work = path.with_name(f"{path.name}.partial")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            work.write_text(json.dumps(without_nan(content), indent=2) + "\n", encoding="utf-8")
            work.replace(path)
        except OSError:
            work.unlink(missing_ok=True)
            raise


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
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise RecordingError(f"{path} has fewer than {count} complete lines: restore it from a backup.") from error


def flush(path: Path) -> None:
    """Flush a file or a folder to the disk, so that a failure of the machine does not lose it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def without_nan(value: object) -> object:
    """Replace NaN and infinity by None, also in mappings and sequences."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value
