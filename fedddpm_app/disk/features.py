"""The features that a data set of ``datasets`` states, checked before the library makes objects of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow

from fedddpm_app import limits
from fedddpm_app.disk.bounded import parse_json, read_json

INFO = "dataset_info.json"  # of a folder of ``save_to_disk``
_KEY = b"huggingface"  # under which the schema of a table has the same


def check_info(path: Path) -> None:
    """Check the features in a ``dataset_info.json``, as ``check_schema``; raise ``OSError`` without it."""
    _check(read_json(path), path)


def check_arrow(path: Path) -> None:
    """Check the features in the schema of an Arrow file, as ``check_schema``; its rows are not read."""
    with pyarrow.memory_map(str(path)) as source:
        try:
            schema = pyarrow.ipc.open_stream(source).schema
        except pyarrow.ArrowInvalid:
            source.seek(0)
            schema = pyarrow.ipc.open_file(source).schema
    check_schema(schema, path)


def check_schema(schema: pyarrow.Schema, path: Path) -> None:
    """Check the features in the schema of a table.

    Raises
    ------
    ValueError
        When they state more classes than any data set has, whose names would be made, or name a file to read.
    """
    text = (schema.metadata or {}).get(_KEY, b"{}")
    _check(parse_json(text), path)


def _check(about: Any, path: Path) -> None:
    for feature in _objects(about):
        if feature.get("names_file") is not None:
            raise ValueError(f"{path.name} states classes in another file (names_file): write their names into it")
        count = feature.get("num_classes")
        if isinstance(count, int | float) and count > limits.CLASSES:
            raise ValueError(f"{path.name} states {count:,} classes, more than {limits.CLASSES:,}: use fewer")


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """Yield all objects in a JSON value; how deep they lie was bounded when the value was read."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            yield found
            waiting += found.values()
        elif isinstance(found, list):
            waiting += found
