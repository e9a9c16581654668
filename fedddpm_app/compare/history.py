"""The history of a cell: a metric over rounds, gradient steps, MB and seconds, from its ``stats.jsonl``."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedddpm_app.compare.statistics import deviation, interval
from fedddpm_app.recording.layout import STATS
from fedddpm_app.recording.reading import read_rows
from fedddpm_app.recording.status import read_status
from fedddpm_app.recording.style import number

AXES = {"round": "round", "steps": "gradient steps", "mb": "MB exchanged", "seconds": "seconds without evaluation"}
_LEFT_OUT = "/left_out"
_WITHOUT_EFFECT = ("client-eval", "generate")  # phases whose lost clients change no model: others do their part
_NOTHING = dict.fromkeys(AXES, 0.0)
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
    rows = with_costs(read_rows(directory / STATS))
    points = [Point(**spent, value=value) for row, spent in rows for value in _values(row.get("eval/metrics"), metric)]
    final = _values(read_status(directory).summary.get("metrics"), metric)
    spent = rows[-1][1] if rows else _NOTHING
    return History(points, Point(**spent, value=final[0]) if final else None)


def averaged(histories: Sequence[History]) -> list[tuple[Point, float]]:
    """Return the mean over the seeds of each round's point, and the deviation of its values (0 for one seed)."""
    same: dict[float, list[Point]] = {}
    for history in histories:
        for point in history.points:
            same.setdefault(point.round, []).append(point)
    return [(mean_point(points), deviation([point.value for point in points]) or 0.0) for points in same.values()]


def mean_point(points: Sequence[Point]) -> Point:
    """Return the means of the costs and the value of some points; the mean of no finite value is NaN."""
    means = {axis: statistics.fmean(getattr(point, axis) for point in points) for axis in AXES}
    return Point(**means, value=interval([point.value for point in points]).mean)


def with_costs(rows: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, float]]]:
    """Return each line of a ``stats.jsonl`` with the cost up to its end, by the keys of ``AXES``."""
    found, spent = [], _NOTHING
    for row in rows:
        spent = {
            "round": max(spent["round"], _known(row, "round")),
            "steps": spent["steps"] + _known(row, "compute/steps"),
            "mb": spent["mb"] + _known(row, "comm/up_mb") + _known(row, "comm/down_mb"),
            "seconds": spent["seconds"] + _seconds(row),
        }
        found.append((row, spent))
    return found


def read_seconds(directory: Path) -> float:
    """Return the seconds of a cell's phases and rounds, without evaluation."""
    return sum(map(_seconds, read_rows(directory / STATS)))


def read_left_out(directory: Path) -> dict[str, list[str]]:
    """Return the clients without which a cell's models were made, by phase, without reasons.

    An attempt at a round that was abandoned has no effect, and neither have clients that did not evaluate or generate.
    """
    found: dict[str, dict[str, None]] = {}
    rows = [row for row in read_rows(directory / STATS) if row.get("phase") != "abandoned"]
    for key, clients in (item for row in rows for item in row.items()):
        phase = key.removesuffix(_LEFT_OUT)
        if phase != key and phase not in _WITHOUT_EFFECT and isinstance(clients, dict):
            found.setdefault(phase, {}).update(dict.fromkeys(clients))
    return {phase: sorted(clients, key=lambda name: (len(name), name)) for phase, clients in found.items()}


def _seconds(row: dict[str, Any]) -> float:
    """Return the seconds of a phase or round; metrics are measured more often in some rows than in others."""
    total = _known(row, "time/round_s") + _known(row, "time/phase_s")
    return total - sum(_known(row, key) for key in _EVALUATION)


def _known(row: dict[str, Any], key: str) -> float:
    value = number(row.get(key))
    return 0.0 if math.isnan(value) else value


def _values(metrics: object, name: str) -> list[float]:
    """Return the values of a metric in a list of metrics: one, or none."""
    found = metrics if isinstance(metrics, list) else []
    return [number(metric.get("value")) for metric in found if metric.get("name") == name]
