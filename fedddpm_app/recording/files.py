"""Writing the files of a run: a disk that is full gives one sentence, and costs no more than the file."""

import json
import math
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


def without_nan(value: object) -> object:
    """Replace NaN and infinity by None, also in mappings and sequences."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value
