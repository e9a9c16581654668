"""The lines of a security log: append-only, one JSON object per line, for the server's and for a site's.

A line has no path, no image name and no weights: texts of clients are cut, and their paths are replaced.
"""

import datetime
import json
import os
from collections.abc import Mapping
from pathlib import Path

from fedddpm_app.config import one_line, without_paths


def entry_of(event: str, facts: Mapping[str, object]) -> dict[str, object]:
    """Return a line's object: the time (UTC), the event, and its facts, whose texts have no paths."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"time": now, "event": event, **{key: _clean(value) for key, value in facts.items()}}


def append_entry(path: Path, entry: Mapping[str, object]) -> None:
    """Append an object by a single write, so that processes that write to one file do not mix their lines.

    Raises
    ------
    OSError
        When it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        os.write(descriptor, json.dumps(entry).encode() + b"\n")
    finally:
        os.close(descriptor)


def _clean(value: object) -> object:
    if isinstance(value, str):
        return one_line(without_paths(value))
    if isinstance(value, Mapping):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value
