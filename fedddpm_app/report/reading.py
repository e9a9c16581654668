"""The files of a run directory that a report shows; each may be missing, damaged, or written by someone else."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from fedddpm_app import limits
from fedddpm_app.apportion import spread_out
from fedddpm_app.compare.history import with_costs
from fedddpm_app.compare.places import without_places
from fedddpm_app.config import one_line
from fedddpm_app.disk.bounded import read_bytes, read_object
from fedddpm_app.federation.security_log import SECURITY_LOG
from fedddpm_app.recording.layout import AUDIT, CONFIG, LOG, STATS
from fedddpm_app.recording.reading import read_rows, row_of
from fedddpm_app.recording.status import Status, read_status

MAX_POINTS = 500  # of a line; a longer one is thinned out
_WARNINGS = ("WARNING", "ERROR")
_MAX_WARNINGS = 100
_DEEPEST = 20  # lists and objects in each other; a run has at most 5
T = TypeVar("T")


@dataclass(frozen=True)
class Line:
    """A line of ``stats.jsonl`` with the cost up to its end."""

    row: Mapping[str, Any]
    round: int
    steps: float
    mb: float

    def number(self, key: str) -> float | None:
        """Return a finite number of the line; None without one."""
        value = self.row.get(key)
        known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if known and abs(value) < limits.LARGEST_NUMBER else None  # type: ignore[arg-type]

    def by_client(self, key: str) -> dict[str, Any]:
        """Return an object with a value per client; empty if the line has none."""
        value = self.row.get(key)
        return value if isinstance(value, dict) else {}

    @property
    def place(self) -> dict[str, Any]:
        """The x values of the line in a chart."""
        return {"round": self.round, "steps": round(self.steps, 2), "mb": round(self.mb, 4)}

    @property
    def name(self) -> str:
        """Such as ``round 3`` or ``pretrain``."""
        phase = str(self.row.get("phase", ""))
        return f"round {self.round}" if phase == "round" else one_line(phase)


class StoredRun:
    """A run directory; paths and hosts in its texts are left out."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = directory.resolve().name

    @cached_property
    def status(self) -> Status:
        """The status of the run."""
        found = read_status(self.directory)
        return replace(found, state=one_line(found.state, limits.LONGEST_VALUE), summary=usable(dict(found.summary)))

    @cached_property
    def lines(self) -> list[Line]:
        """The lines of ``stats.jsonl``."""
        rows = with_costs(usable(read_rows(self.directory / STATS)))
        return [Line(row, int(spent["round"]), spent["steps"], spent["mb"]) for row, spent in rows]

    @cached_property
    def rounds(self) -> list[Line]:
        """The lines of the rounds."""
        return [line for line in self.lines if line.row.get("phase") == "round"]

    @cached_property
    def data(self) -> Mapping[str, Any]:
        """The line of the data; empty without it."""
        return row_of((line.row for line in self.lines), "data")

    @cached_property
    def about(self) -> dict[str, Any]:
        """The content of ``config.json``; empty if it cannot be read."""
        return self._object(CONFIG)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The run config."""
        found = self.about.get("run_config")
        return found if isinstance(found, dict) else {}

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The final metrics."""
        return metrics_in(self.status.summary.get("metrics"))

    @cached_property
    def audit(self) -> dict[str, Any]:
        """The findings of `fedddpm audit`; empty without them."""
        return self._object(AUDIT)

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        """The lines of the security log."""
        found: list[dict[str, Any]] = usable(read_rows(self.directory / SECURITY_LOG))
        return found

    @cached_property
    def warnings(self) -> list[str]:
        """The warnings and errors of ``log.txt``, each once, at most ``_MAX_WARNINGS``."""
        try:
            text = read_bytes(self.directory / LOG, limits.LOG_CHARACTERS).decode("utf-8", "replace")
        except (OSError, ValueError):
            return []
        lines = (one_line(line) for line in text.splitlines() if line.startswith(_WARNINGS))
        found: list[str] = without_places(list(dict.fromkeys(lines)))
        return found[:_MAX_WARNINGS]

    def _object(self, name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = usable(read_object(self.directory / name))
        except (OSError, ValueError):
            return {}
        return found


def usable(value: Any) -> Any:
    """Return a value of a JSON file without places, parts that are nested too deeply, and numbers beyond all floats."""
    return without_places(_bounded(value, _DEEPEST))


def _bounded(value: Any, depth: int) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return None if abs(value) > limits.LARGEST_NUMBER else value
    if not isinstance(value, dict | list):
        return value
    if not depth:
        return None
    if isinstance(value, list):
        return [_bounded(item, depth - 1) for item in value]
    return {key: _bounded(item, depth - 1) for key, item in value.items()}


def objects_in(found: object) -> list[dict[str, Any]]:
    """Return the objects of a list; nothing if it is none."""
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def is_count(value: object) -> bool:
    """Return whether a value is a whole number that is not negative."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < limits.LARGEST_NUMBER


def metrics_in(found: object) -> list[dict[str, Any]]:
    """Return the metrics in a value of ``stats.jsonl`` or ``summary.json`` that have a name."""
    return [metric for metric in objects_in(found) if isinstance(metric.get("name"), str)]


def thinned(lines: Sequence[T], most: int = MAX_POINTS) -> list[T]:
    """Return at most ``most`` of the lines, evenly spread, with the first and the last."""
    return [lines[k] for k in spread_out(len(lines), most)]


def as_json(value: object) -> str:
    """Return a value as it stands in a TOML or JSON file."""
    return json.dumps(value, ensure_ascii=False)
