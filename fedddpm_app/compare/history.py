"""The history of a cell: a metric over rounds, gradient steps, MB and seconds, from its ``stats.jsonl``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedddpm_app import limits
from fedddpm_app.disk.bounded import read_bytes
from fedddpm_app.recording.recorder import STATS
from fedddpm_app.recording.status import read_status
from fedddpm_app.recording.style import number

AXES = {"round": "round", "steps": "gradient steps", "mb": "MB exchanged", "seconds": "seconds without evaluation"}
_LEFT_OUT = "/left_out"
_EVALUATION = ("time/server-evaluate_s", "time/evaluate_s")


@dataclass(frozen=True)
class Point:
    """A metric, and the cost up to then: rounds, gradient steps, MB up and down, seconds without evaluation."""

    round: float
    steps: float
    mb: float
    seconds: float
    value: float


@dataclass(frozen=True)
class History:
    """A metric of a cell during the rounds (few images), and at the end (all images; None if it has none)."""

    points: list[Point]
    final: Point | None


def read_history(directory: Path, metric: str) -> History:
    """Return the history of a complete cell; lines that cannot be read are left out."""
    points, spent = [], {"round": 0.0, "steps": 0.0, "mb": 0.0, "seconds": 0.0}
    for row in read_rows(directory / STATS):
        spent["steps"] += _known(row, "compute/steps")
        spent["mb"] += _known(row, "comm/up_mb") + _known(row, "comm/down_mb")
        spent["seconds"] += _seconds(row)
        spent["round"] = max(spent["round"], _known(row, "round"))
        points += [Point(**spent, value=value) for value in _values(row.get("eval/metrics"), metric)]
    final = _values(read_status(directory).summary.get("metrics"), metric)
    return History(points, Point(**spent, value=final[0]) if final else None)


def read_seconds(directory: Path) -> float:
    """Return the seconds of a cell's phases and rounds, without evaluation."""
    return sum(map(_seconds, read_rows(directory / STATS)))


def read_left_out(directory: Path) -> dict[str, list[str]]:
    """Return the clients that were left out of a cell's phases and rounds, by phase, without reasons."""
    found: dict[str, dict[str, None]] = {}
    for row in read_rows(directory / STATS):
        for key, clients in row.items():
            if key.endswith(_LEFT_OUT) and isinstance(clients, dict):
                found.setdefault(key.removesuffix(_LEFT_OUT), {}).update(dict.fromkeys(clients))
    return {phase: sorted(clients, key=lambda name: (len(name), name)) for phase, clients in found.items()}


def _seconds(row: dict[str, Any]) -> float:
    """Return the seconds of a phase or round; metrics are measured more often in some rows than in others."""
    total = _known(row, "time/round_s") + _known(row, "time/phase_s")
    return total - sum(_known(row, key) for key in _EVALUATION)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a ``stats.jsonl``; lines that cannot be read are left out."""
    try:
        lines = read_bytes(path, limits.LINES_BYTES).decode("utf-8").splitlines()
    except (OSError, ValueError):
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _known(row: dict[str, Any], key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else 0.0


def _values(metrics: object, name: str) -> list[float]:
    """Return the values of a metric in a list of metrics: one, or none."""
    found = metrics if isinstance(metrics, list) else []
    return [number(metric.get("value")) for metric in found if metric.get("name") == name]
