"""The points that a line of ``stats.jsonl`` gives: names, numbers, and the round that they belong to.

A line's points are its numbers: every finite number, true as 1 and false as 0. A metric in a list of metrics gives its
value and the numbers beside it. Texts, null, and values by client or by class have no point.
"""

import math
from collections.abc import Iterator, Mapping

_OF_ROUNDS = ("round", "initial")  # the phases whose keys are curves over the rounds
_NOT_VALUES = ("phase", "round")
_OF_METRIC = ("value", "std", "floor", "floor_std", "n")
_METRICS = "eval/metrics"


def points_of_line(line: Mapping[str, object]) -> tuple[int, dict[str, float]]:
    """Return the round of a line, 0 before the rounds, and its points by name.

    A round's keys are the names, such as ``train/loss``. Those of another phase start with the phase, such as
    ``pretrain/comm/up_mb``, and those of a failed attempt with ``abandoned-1/``: several lines may have one round, and
    their points stay apart. The metric ``fd-classifier`` gives ``eval/fd-classifier``, ``eval/fd-classifier_std``,
    ``_floor``, ``_floor_std`` and ``_n``.
    """
    phase, server_round = str(line.get("phase", "")), line.get("round")
    prefix = "" if phase in _OF_ROUNDS else f"{phase}-{line['attempt']}/" if "attempt" in line else f"{phase}/"
    found = {
        name if name.startswith(prefix) else prefix + name: value
        for name, value in _numbers(line, _METRICS, "eval/")
        if name not in _NOT_VALUES
    }
    return server_round if isinstance(server_round, int) else 0, found


def points_of_summary(summary: Mapping[str, object]) -> dict[str, float]:
    """Return the points of a ``summary.json``; their names start with ``summary/``."""
    return {f"summary/{name}": value for name, value in _numbers(summary, "metrics", "")}


def _numbers(line: Mapping[str, object], metrics: str, prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in line.items():
        if key == metrics and isinstance(value, list):
            yield from _of_metrics(value, prefix)
        elif is_point(value):
            yield key, float(value)  # type: ignore[arg-type]


def _of_metrics(metrics: list[object], prefix: str) -> Iterator[tuple[str, float]]:
    for metric in metrics:
        if isinstance(metric, Mapping) and "name" in metric:
            for field in _OF_METRIC:
                if is_point(metric.get(field)):
                    suffix = "" if field == "value" else f"_{field}"
                    yield f"{prefix}{metric['name']}{suffix}", float(metric[field])


def is_point(value: object) -> bool:
    """Return whether a value is a finite number that a float can hold, or true or false."""
    try:
        return isinstance(value, bool | int | float) and math.isfinite(value)
    except OverflowError:
        return False
