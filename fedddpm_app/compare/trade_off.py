"""The plot of a trade-off: the grid's first metric against others, such as quality against what leaks."""

import math
import statistics
from pathlib import Path

from matplotlib.axes import Axes

from fedddpm_app.compare.looks import (
    Look,
    Results,
    heading,
    legend_of,
    looks_of,
    scale,
    value_in,
    values_of,
    with_direction,
)
from fedddpm_app.compare.table import conditions_of
from fedddpm_app.recording.style import FLOOR, open_figure

PICTURE = "trade-off.png"


def plot_trade_off(results: Results, path: Path) -> None:
    """Plot the first metric against each metric of ``trade_off``; a row of panels per condition.

    A row of the grid that does not have a metric, or has no complete seed, is not in its panel.

    Parameters
    ----------
    results : mapping
        As ``results.json``.
    path : Path
        The PNG.
    """
    metric, others = results["metrics"][0], results["trade_off"]
    conditions, looks = conditions_of(results), looks_of(results)
    title = (
        f"{heading(results, metric)}\n"
        "small: seeds; large: mean over seeds; dashed: floor (real images; for an attack, guesses)"
    )
    with open_figure(path, title, 1.0 + 3.8 * len(others), 1.6 + 3.6 * len(conditions)) as figure:
        grid = figure.subplots(len(conditions), len(others), squeeze=False, sharey="row")
        for row, condition in zip(grid, conditions, strict=True):
            for axes, other in zip(row, others, strict=True):
                for label, look in looks.items():
                    _points(axes, pairs_of(results, label, condition, other), look, label)
                _floors(axes, results, condition, other)
                axes.set_xlabel(with_direction(results, other))
                axes.locator_params(axis="x", nbins=5)
            row[0].set(ylabel=metric, title=condition)
            scale(row[0], [v for label in looks for v in values_of(results, label, condition, metric)])
        legend_of(figure, looks)


def pairs_of(results: Results, label: str, condition: str, other: str) -> list[tuple[float, float]]:
    """Return (value of the other metric, value of the first) of each seed that has both."""
    cells = [each for each in results["cells"] if (each["label"], each["condition"]) == (label, condition)]
    pairs = [(value_in(cell, other), value_in(cell, results["metrics"][0])) for cell in cells]
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _points(axes: Axes, pairs: list[tuple[float, float]], look: Look, label: str) -> None:
    if not pairs:
        return
    across, up = zip(*pairs, strict=True)
    axes.plot(across, up, look.marker, color=look.color, markersize=4, alpha=0.45, markeredgewidth=0)
    mean = [statistics.fmean(across)], [statistics.fmean(up)]
    axes.plot(*mean, look.marker, color=look.color, markersize=9, markeredgecolor="white", label=label)


def _floors(axes: Axes, results: Results, condition: str, other: str) -> None:
    """Mark the floors of both metrics, as the condition's first row of the grid that has them gives them."""
    settings = [each["metrics"] for each in results["settings"] if each["condition"] == condition]
    for name, mark in ((other, axes.axvline), (results["metrics"][0], axes.axhline)):
        floors = (found[name]["floor"] for found in settings if name in found)
        floor = next((value for value in floors if value is not None and math.isfinite(value)), None)
        if floor is not None:
            mark(floor, color=FLOOR, linestyle="--", linewidth=1)
