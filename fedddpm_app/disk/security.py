"""The lines of a security log: append-only, one JSON object per line, for the server's and for a site's.

A line has no path, no image name and no weights: texts of clients are cut, and their paths are replaced.
"""

import datetime
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

_LONGEST_TEXT = 300  # characters of a text; as of the reasons in the log of a run
_PATH = re.compile(r"(?:(?<![\w.)\]/])|\bpath:)(?:~|\.{1,2})?(?:/[^\s/:;,'\"()\[\]<>]+)+/?|\b[A-Za-z]:\\[^\s;,'\"]+")

_FILE = re.compile(
    r"[^\s/\\'\"<>=(]+\.(?:png|jpe?g|tiff?|bmp|gif|webp|dcm|nii|np[yz]|parquet|csv|jsonl?)\b", re.IGNORECASE
)


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


def without_paths(text: str) -> str:
    """Return a text, cut, with ``<path>`` in the place of each path, and ``<file>`` in that of each name of a file."""
    return _FILE.sub("<file>", _PATH.sub("<path>", text[: 4 * _LONGEST_TEXT]))[:_LONGEST_TEXT]


def _clean(value: object) -> object:
    if isinstance(value, str):
        return without_paths(value)
    if isinstance(value, Mapping):
        return {str(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value
