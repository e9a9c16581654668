"""The look of a grid's plots: colours, lines and markers of the rows, headings, and the axes' scales."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes

from fedddpm_app.recording.style import SERIES, plain_log_axis

Results = Mapping[str, Any]
LEGEND_COLUMNS = 5
WIDE = 8.0  # a wider range gets a log axis
_LINES = ("-", "--", ":")
_MARKERS = "osD^vP*Xdph<>8"


@dataclass(frozen=True)
class Look:
    """The look of a line of the grid, the same in every plot."""

    color: str
    linestyle: str
    marker: str


def looks_of(results: Results) -> dict[str, Look]:
    """Return the look of each line: the colour is the row's, and the reference alone is black."""
    colours = colours_of(results)
    values: dict[str, list[str]] = {}
    for each in results["settings"]:
        if each["label"] not in values.setdefault(each["row"], []):
            values[each["row"]].append(each["label"])
    looks = {}
    for k, row in enumerate(colours):
        for v, label in enumerate(values[row]):
            line = _LINES[(k // len(SERIES) + v) % len(_LINES)]
            looks[label] = Look(colours[row], line, _MARKERS[(k + v) % len(_MARKERS)])
    return looks


def colours_of(results: Results) -> dict[str, str]:
    """Return the colour of each row, the reference first."""
    rows = sorted({each["row"]: None for each in results["settings"]}, key=lambda row: row != results["reference"])
    return {row: SERIES[1 + (k - 1) % (len(SERIES) - 1)] if k else SERIES[0] for k, row in enumerate(rows)}


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
    better = results["measured"].get(metric, {}).get("better")
    return f"{results['title'] or results['name']}: {metric}{f' ({better} is better)' if better else ''}"
