"""Reading files that may come from somewhere else: no more bytes than a limit are read, whatever the file claims."""

import json
import stat
import sys
from pathlib import Path
from typing import Any

from fedddpm_app import limits


def read_bytes(path: Path, largest: int) -> bytes:
    """Return the content of a file.

    Raises
    ------
    OSError
        When the file cannot be read.
    ValueError
        When it is larger than ``largest`` bytes, or no file, such as a device or a pipe.
    """
    size = check_size(path, largest)
    with path.open("rb") as file:
        return file.read(size)  # no more, if it grows


def check_size(path: Path, largest: int) -> int:
    """Return the bytes of a file; raise ``ValueError`` if it has more than ``largest`` or is no file."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path.name} is not a file: replace it by one")
    if found.st_size > largest:
        raise ValueError(
            f"{path.name} has {found.st_size:,} bytes, more than the {largest:,} that this app reads: make it smaller"
        )
    return found.st_size


def read_json(path: Path, largest: int = limits.JSON_BYTES) -> Any:
    """Return the value in a JSON file.

    Raises
    ------
    OSError
        When the file cannot be read.
    ValueError
        When it is larger than ``largest`` bytes, or not JSON.
    """
    text = read_bytes(path, largest).decode("utf-8")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; errors as in ``read_json``, also for another value."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds a {type(found).__name__} instead of an object")
    return found


def check_tensors(path: Path) -> int:
    """Return the bytes of a safetensors file, after a check of the size of its header.

    Raises
    ------
    OSError
        When the file cannot be read.
    ValueError
        When its header states more tensors than a model has: the library would take memory for all of them.
    """
    size = check_size(path, sys.maxsize)
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > limits.TENSOR_HEADER_BYTES:
        raise ValueError(
            f"{path.name} states a header of {header:,} bytes, more than the {limits.TENSOR_HEADER_BYTES:,} that this "
            "app reads: store fewer tensors in it"
        )
    return size
