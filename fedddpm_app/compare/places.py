"""Published texts name no absolute path of a machine, and no host."""

import re
from collections.abc import Mapping
from typing import Any

_ABSOLUTE = re.compile(r"(?<![\w./:~])~?(?:/[\w.+@-]+)*/([\w.+@-]+)/?|(?<=path:)(?:/[\w.+@-]+)*/([\w.+@-]+)/?")
_FILE_URL = re.compile(r"file://[^/\s]*(?=/)")
_WHOLE = re.compile(r"(path:)?~?/(?:(?!: |[\s,;]~?/).)*")  # a text that is one path, which may hold spaces and commas
_QUOTED = re.compile(r"""(['"])((?:path:)?~?/[^'"\n]*)\1""")
_HOST = re.compile(r"(pid \d+) on [^\s,;:]+")  # in the reason of a run whose process was killed


def without_places(value: Any) -> Any:
    """Return a JSON value without names of hosts and absolute paths: each path is reduced to its last name."""
    if isinstance(value, str):
        return _without_places(value)
    if isinstance(value, Mapping):
        return {key: without_places(item) for key, item in value.items()}
    return [without_places(item) for item in value] if isinstance(value, list) else value


def _without_places(text: str) -> str:
    text = _FILE_URL.sub("", text)
    if _WHOLE.fullmatch(text):
        return _last_name(text)
    text = _QUOTED.sub(lambda found: f"{found[1]}{_last_name(found[2])}{found[1]}", text)
    return _HOST.sub(r"\1", _ABSOLUTE.sub(lambda found: found[1] or found[2], text))


def _last_name(path: str) -> str:
    """Return the last name of one absolute path, after its ``path:`` if it has that."""
    scheme = "path:" if path.startswith("path:") else ""
    return scheme + (path.removeprefix(scheme).rstrip("/").rpartition("/")[2] or "/")
