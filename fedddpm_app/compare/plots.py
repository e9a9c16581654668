"""The plots of a grid: curves over the cost, the claim, and the sweep of an ablation."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fedddpm_app.compare.history import AXES, History, Point, averaged, mean_point
from fedddpm_app.compare.looks import (
    LEGEND_COLUMNS,
    WIDE,
    Look,
    Results,
    heading,
    legend_of,
    looks_of,
    row_looks,
    scale,
    values_of,
)
from fedddpm_app.compare.reference import compared_to, floor_of, is_swept, limits_of, reference_mean
from fedddpm_app.compare.sweep import are_numbers, sweep_line, uses_key
from fedddpm_app.compare.table import conditions_of, labels_of
from fedddpm_app.recording.style import FLOOR, mark_every, open_figure

_EDGE = 1.3  # a logarithmic axis of the claim ends at so many times its last value


def plot_curves(
    results: Results, metric: str, histories: Mapping[tuple[str, str], Sequence[History]], path: Path
) -> None:
    """Plot a metric against rounds, gradient steps, MB and seconds; a row of panels per condition.

    Parameters
    ----------
    results : mapping
        As ``results.json``.
    metric : str
        Its name.
    histories : mapping of (label, condition) to sequence of History
        One for each complete seed.
    path : Path
        The PNG.
    """
    conditions, looks = conditions_of(results), looks_of(results)
    title = (
        f"{heading(results, metric)}\n"
        "line: during the rounds (few images), mean and deviation over seeds; large marker: final model, all images"
    )
    with open_figure(path, title, 16, 1.8 + 3.4 * len(conditions)) as figure:
        grid = figure.subplots(len(conditions), len(AXES), squeeze=False, sharey="row")
        for row, condition in zip(grid, conditions, strict=True):
            for axes, (axis, name) in zip(row, AXES.items(), strict=True):
                for label, look in looks.items():
                    _curve(axes, axis, histories.get((label, condition), ()), look, label)
                axes.set_xlabel(name)
            row[0].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            row[0].set(ylabel=metric, title=condition)
            scale(row[0], [p.value for (_, c), found in histories.items() if c == condition for p in _points(found)])
        legend_of(figure, looks)


def _points(histories: Sequence[History]) -> list[Point]:
    return [p for each in histories for p in [*each.points, *([each.final] if each.final else [])]]


def _curve(axes: Axes, axis: str, histories: Sequence[History], look: Look, label: str) -> None:
    """Plot the mean over the seeds, with a band of one deviation, and the final model."""
    points = averaged(histories)
    places, means = [getattr(p, axis) for p, _ in points], [p.value for p, _ in points]
    if points:
        every = mark_every(len(points))
        shape: dict[str, Any] = {"linestyle": look.linestyle, "marker": look.marker, "markevery": every}
        axes.plot(places, means, color=look.color, markersize=3, linewidth=1.2, **shape)
        low, high = ([p.value + sign * spread for p, spread in points] for sign in (-1, 1))
        axes.fill_between(places, low, high, color=look.color, alpha=0.12, linewidth=0)
    final = [each.final for each in histories if each.final]
    if final:
        mean = mean_point(final)
        big: dict[str, Any] = {"marker": look.marker, "markersize": 9, "markeredgecolor": "white"}
        place = getattr(mean, axis)
        axes.plot([place], [mean.value], color=look.color, linestyle=look.linestyle, label=label, **big)


def plot_claim(results: Results, metric: str, path: Path) -> None:
    """Plot a metric's points per seed and mean, and the interval of the difference to the reference.

    The interval is that of the table, from the mean of the reference: the sentences say "lower" or "higher" where it
    does not cross the dotted line.
    """
    conditions, labels, looks = conditions_of(results), labels_of(results), looks_of(results)
    dotted = "" if is_swept(results) else f"dotted: mean of {results['reference']}, where the difference is zero; "
    title = (
        f"{heading(results, metric)}\n"
        f"points: seeds; tick: mean; line, cut at the edge: 95 % interval of the difference to {compared_to(results)}\n"
        f"{dotted}dashed: floor (real images)"
    )
    with open_figure(path, title, 2.6 + 4.0 * len(conditions), 1.8 + 0.36 * len(labels)) as figure:
        panels = figure.subplots(1, len(conditions), squeeze=False, sharey=True)[0]
        for axes, condition in zip(panels, conditions, strict=True):
            shown = []
            for place, label in enumerate(labels):
                values = values_of(results, label, condition, metric)
                limits = limits_of(results, label, condition, metric)
                _bar(axes, place, values, limits, looks[label])
                shown += values
            shown += _reference_lines(axes, results, condition, metric)
            scale(axes, shown, "x")
            if axes.get_xscale() == "log":  # wide intervals, also those that reach zero, end at the edge
                axes.set_xlim(min(shown) / _EDGE, max(shown) * _EDGE)
            axes.set(title=condition, xlabel=metric)
            axes.grid(visible=False, axis="y")
        panels[0].set_yticks(range(len(labels)), labels)
        panels[0].set_ylim(len(labels) - 0.5, -0.5)


def _bar(axes: Axes, place: float, values: Sequence[float], limits: Sequence[float], look: Look) -> None:
    """Plot the values of a line, their mean, and an interval if it has one."""
    if not values:
        return
    colour = look.color
    axes.plot(values, [place] * len(values), look.marker, color=colour, markersize=4, alpha=0.45, markeredgewidth=0)
    axes.plot([statistics.fmean(values)] * 2, [place - 0.28, place + 0.28], color=colour, linewidth=2)
    if limits:
        low, high = limits
        axes.hlines(place, low, high, color=colour, linewidth=1.4)


def _reference_lines(axes: Axes, results: Results, condition: str, metric: str) -> list[float]:
    """Mark the reference's mean, and the floor; return the floor."""
    mean, floor = reference_mean(results, metric, condition), floor_of(results, metric, condition)
    if mean is not None:
        axes.axvline(mean, color=row_looks(results)[results["reference"]].color, linestyle=":", linewidth=1)
    if floor is not None:
        axes.axvline(floor, color=FLOOR, linestyle="--", linewidth=1)
    return [] if floor is None else [floor]


def plot_sweep(results: Results, metric: str, path: Path) -> None:
    """Plot a metric against the values of the sweep's key: mean and interval, a line per row, a panel per condition."""
    conditions, sweep = conditions_of(results), results["grid"]["sweep"]
    title = f"{heading(results, metric)}\nmean and 95 % interval over seeds"
    numeric = are_numbers(sweep["values"])
    places = dict(zip(sweep["values"], sweep["values"] if numeric else range(len(sweep["values"])), strict=True))
    with open_figure(path, title, 1.5 + 4.2 * len(conditions), 4.6) as figure:
        panels = figure.subplots(1, len(conditions), squeeze=False, sharey=True)[0]
        for axes, condition in zip(panels, conditions, strict=True):
            shown = []
            for row, look in row_looks(results).items():
                line = [(places[value], each) for value, each in sweep_line(results, metric, condition, row)]
                shown += _sweep_line(axes, line, look, row, is_level=not uses_key(results, row))
            axes.set(title=condition, xlabel=sweep["key"])
            if numeric and min(places) > 0 and max(places) > WIDE * min(places):
                axes.set_xscale("log")
            axes.set_xticks([*places.values()], [str(value) for value in places])
            axes.minorticks_off()
            scale(axes, shown)
        panels[0].set_ylabel(metric)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=LEGEND_COLUMNS)


def _sweep_line(
    axes: Axes, line: Sequence[tuple[float, Mapping[str, Any]]], look: Look, row: str, *, is_level: bool
) -> list[float]:
    """Plot a row over the places of the values, dashed where the key has no effect; return the values shown."""
    if not line:
        return []
    where, means = [place for place, _ in line], [each["mean"] for _, each in line]
    dashes, marker = ("--", "") if is_level else ("-", look.marker)
    axes.plot(where, means, color=look.color, linestyle=dashes, marker=marker, label=row)
    low, high = ([each["mean"] if each[key] is None else each[key] for _, each in line] for key in ("low", "high"))
    axes.fill_between(where, low, high, color=look.color, alpha=0.15, linewidth=0)
    return [*means, *low, *high]
