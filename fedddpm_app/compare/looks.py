"""The look of a grid's plots: colours, lines and markers of the rows, headings, and the axes' scales."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedddpm_app.compare.notes import is_attack
from fedddpm_app.recording.style import LINES, MARKERS, SERIES, plain_log_axis

Results = Mapping[str, Any]
LEGEND_COLUMNS = 5
WIDE = 8.0  # a wider range gets a log axis
_OWN = ("fedavg", "fedddpm", "fedddpm-plus")  # rows with the same look in every grid


@dataclass(frozen=True)
class Look:
    """The look of a line of the grid, the same in every plot."""

    color: str
    linestyle: str
    marker: str


def looks_of(results: Results) -> dict[str, Look]:
    """Return the look of each line: that of its row, and the next marker and dash for each value of a sweep."""
    numbers = _numbers_of(results)
    values: dict[str, list[str]] = {}
    for each in results["settings"]:
        if each["label"] not in values.setdefault(each["row"], []):
            values[each["row"]].append(each["label"])
    return {label: _look(numbers[row], v) for row, labels in values.items() for v, label in enumerate(labels)}


def row_looks(results: Results) -> dict[str, Look]:
    """Return the look of each row that has settings, in the order of the settings."""
    numbers = _numbers_of(results)
    return {each["row"]: _look(numbers[each["row"]]) for each in results["settings"]}


def _numbers_of(results: Results) -> dict[str, int]:
    """Return a number for each row of the grid's file, whichever are shown; those of ``_OWN`` are the first."""
    others = [row for row in results["grid"]["rows"] if row not in _OWN]
    return {row: number for number, row in enumerate([*_OWN, *others])}


def _look(number: int, value: int = 0) -> Look:
    colour = number if number < len(SERIES) else len(_OWN) + (number - len(_OWN)) % (len(SERIES) - len(_OWN))
    return Look(SERIES[colour], LINES[(number + value) % len(LINES)], MARKERS[(number + value) % len(MARKERS)])


def legend_of(figure: Figure, looks: Mapping[str, Look]) -> None:
    """Write one legend for all panels of a figure, in the order of the lines."""
    legends = [axes.get_legend_handles_labels() for axes in figure.axes]
    handles = {text: handle for legend in legends for handle, text in zip(*legend, strict=True)}
    shown = [label for label in looks if label in handles]
    if shown:
        figure.legend([handles[label] for label in shown], shown, loc="outside lower center", ncols=LEGEND_COLUMNS)


def values_of(results: Results, label: str, condition: str, metric: str) -> list[float]:
    """Return a metric's values of the complete seeds."""
    cells = [each for each in results["cells"] if (each["label"], each["condition"]) == (label, condition)]
    return [value for each in cells if (value := value_in(each, metric)) is not None]


def value_in(cell: Mapping[str, Any], metric: str) -> float | None:
    """Return a metric of a cell; None if it has none that is finite."""
    value = cell.get("metrics", {}).get(metric, {}).get("value")
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def scale(axes: Axes, values: Sequence[float], which: Literal["x", "y"] = "y") -> None:
    """Make an axis logarithmic if its values are positive and far apart."""
    known = [value for value in values if math.isfinite(value)]
    if known and min(known) > 0 and max(known) > WIDE * min(known):
        plain_log_axis(axes, which)


def heading(results: Results, metric: str) -> str:
    """Return the names of the grid and the metric, and whether a lower or a higher value is better."""
    return f"{results['title'] or results['name']}: {with_direction(results, metric)}"


def with_direction(results: Results, metric: str) -> str:
    """Return the metric's name, and which of its values are better; nothing is better than 0.5 for an attack."""
    better = results["measured"].get(metric, {}).get("better")
    guess = ", 0.5 is a guess" if is_attack(results, metric) else ""
    return f"{metric} ({better} is better{guess})" if better else metric
