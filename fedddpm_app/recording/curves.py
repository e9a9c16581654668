"""Plots over the rounds: losses and metrics."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes

from fedddpm_app.recording.style import (
    CLIENTS,
    FLOOR,
    GENERATED,
    SERVER,
    TEST,
    WARNING,
    count_rounds,
    mark_every,
    number,
    open_figure,
    plain_log_axis,
)

Row = Mapping[str, Any]


class Curve(NamedTuple):
    """The look of a loss: the colour is the place of the data, a dashed line has the EMA weights or held-out images."""

    label: str
    colour: str
    line: str = "-"
    width: float = 1.6
    alpha: float = 1.0
    marker: str = "o"


LOSSES = {
    "train/loss": Curve("clients, during training", CLIENTS),
    "client-eval/loss": Curve("clients, held-out images", CLIENTS, ":", marker="s"),
    "correct/loss": Curve("server, correction on D_aux", SERVER, "-.", marker="^"),
    "eval/loss": Curve("test split, raw weights", TEST, width=4.5, alpha=0.35),
    "eval/ema_loss": Curve("test split, EMA weights", TEST, "--", marker="D"),
}
_CLIPPED = 2.0  # the loss of round 0 is outside the plot if it would make the axis so many times as long
WIDE = 4.0  # a wider range of losses gets a log axis
_SHORT = 10.0  # a log axis of a narrower range has more numbers
_MAX_CORRECTIONS = 40  # with more, triangles would be a bar
QUANTITIES = {
    **dict.fromkeys(("fid", "fd", "kid", "kd"), "distance"),
    **dict.fromkeys(("inception", "score"), "score"),
    **dict.fromkeys(("precision", "recall", "coverage", "class"), "share, 0 to 1"),
    "density": "ratio",
}


def plot_losses(stats: Sequence[Row], path: Path, run: str = "") -> None:
    """Plot every denoising loss of ``stats.jsonl`` over the rounds into a PNG; ``run`` is the name of the run."""
    curves = {key: _points(stats, key) for key in LOSSES}
    finite = [loss for points in curves.values() for _, loss in points if math.isfinite(loss)]
    later = [loss for points in curves.values() for k, loss in points if k and math.isfinite(loss)]
    with open_figure(path, f"Denoising loss{run and f' of {run}'}", 8, 5) as figure:
        axes = figure.subplots()
        for key, points in curves.items():
            if points:
                _draw(axes, points, LOSSES[key])
        _mark_corrections(axes, stats)
        count_rounds(axes, sorted({k for points in curves.values() for k, _ in points}))
        axes.set_ylabel("denoising loss, mean over pixels")
        clipped = flattens(curves)
        _limit(axes, later if clipped else finite, clipped)
        lost = sorted({k for points in curves.values() for k, loss in points if math.isnan(loss)})
        missing = _missing(lost, any_later=bool(later))  # a red text says that losses are not finite
        above = f"round 0 (untrained) is above the plot: {max(finite):.3g}" if clipped else ""
        remarks = "; ".join(filter(None, [missing, above]))
        axes.set_title(remarks, fontsize=9, color=WARNING if lost else FLOOR)
        if axes.lines:
            figure.legend(loc="outside lower center", ncols=3)


def flattens(curves: Mapping[str, Sequence[tuple[int, float]]]) -> bool:
    """Return whether the loss of round 0 would hide how the later ones change; a single later round changes nothing."""
    known = [(k, loss) for points in curves.values() for k, loss in points if math.isfinite(loss)]
    later = [loss for k, loss in known if k]
    if len({k for k, _ in known if k}) < 2:
        return False
    least, most = min(later), max(later)
    return max(loss for _, loss in known) - least > _CLIPPED * (most - least)


def _limit(axes: Axes, losses: Sequence[float], clipped: bool) -> None:
    """Choose the y axis for the losses that it shows."""
    if losses and min(losses) > 0 and max(losses) > WIDE * min(losses):
        plain_log_axis(axes, short=max(losses) < _SHORT * min(losses))
    if clipped:
        pad = max(0.08 * (max(losses) - min(losses)), 0.02 * max(losses))
        axes.set_ylim(min(losses) - (pad if axes.get_yscale() == "linear" else 0.1 * min(losses)), max(losses) + pad)


def _points(stats: Sequence[Row], key: str) -> list[tuple[int, float]]:
    """Return the rounds and losses; a loss that is not finite is NaN."""
    return [(row["round"], number(row[key])) for row in stats if key in row and "round" in row]


def _draw(axes: Axes, points: Sequence[tuple[int, float]], curve: Curve) -> None:
    rounds, losses = zip(*points, strict=True)
    look: dict[str, Any] = {
        "color": curve.colour,
        "linestyle": curve.line,
        "linewidth": curve.width,
        "alpha": curve.alpha,
    }
    every = mark_every(len(points))
    axes.plot(rounds, losses, marker=curve.marker, markersize=4, markevery=every, label=curve.label, **look)


def _mark_corrections(axes: Axes, stats: Sequence[Row]) -> None:
    """Mark the rounds with a correction at the lower edge."""
    rows = [row for row in stats if "round" in row and "correct/steps" in row]
    if rows:
        steps = sorted({row["correct/steps"] for row in rows})
        label = f"corrected on the server ({' or '.join(f'{count:,}' for count in steps)} steps)"
        marker = "^" if len(rows) <= _MAX_CORRECTIONS else "|"
        look: dict[str, Any] = {"marker": marker, "markersize": 7, "linestyle": "", "color": SERVER, "clip_on": False}
        rounds = [row["round"] for row in rows]
        axes.plot(rounds, [0] * len(rows), transform=axes.get_xaxis_transform(), label=label, **look)


def _missing(lost: Sequence[int], *, any_later: bool) -> str:
    """Return a remark about rounds without a finite loss; empty if there are none."""
    if lost:
        return f"no finite loss in round {', '.join(map(str, lost[:5]))}{', …' if len(lost) > 5 else ''}"
    return "" if any_later else "no losses after round 0"


def plot_metrics(stats: Sequence[Row], path: Path, run: str = "") -> None:
    """Plot every metric of generated images over the rounds into a PNG, with its floor and the floor's deviation.

    Without metrics no PNG is written. ``run`` is the name of the run.
    """
    rows = [row for row in stats if "round" in row and row.get("eval/metrics")]
    panels: dict[str, list[tuple[int, Row]]] = {}
    for row in rows:
        for metric in row["eval/metrics"]:
            panels.setdefault(metric["name"], []).append((row["round"], metric))
    if not panels:
        return
    about = rows[-1]["eval/metrics"][0]
    title = (
        f"Metrics{run and f' of {run}'} over the rounds: {about['n']:,} generated images ({about['weights']} weights, "
        f"{about['sampler']}, {about['steps']} steps)\nagainst the {about['reference']} split. "
        "Floor: the same metric of equally many real images, which a perfect generator reaches"
    )
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    with open_figure(path, title, max(9.0, 3.2 * columns), 1.2 + 2.6 * lines) as figure:
        grid = figure.subplots(lines, columns, squeeze=False).flatten()
        for axes, (name, points) in zip(grid, panels.items(), strict=False):
            _panel(axes, name, points)
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


def _panel(axes: Axes, name: str, points: Sequence[tuple[int, Row]]) -> None:
    """Plot one metric; its title says whether lower or higher is better."""
    rounds = [k for k, _ in points]
    values, floors, spreads = ([number(m[key]) for _, m in points] for key in ("value", "floor", "floor_std"))
    every = mark_every(len(points))
    axes.plot(rounds, values, color=GENERATED, marker="o", markersize=4, markevery=every, label="generated images")
    band = [0 if math.isnan(spread) else spread for spread in spreads]
    low, high = ([f + sign * b for f, b in zip(floors, band, strict=True)] for sign in (-1, 1))
    places = rounds
    if len(points) == 1:  # a single round: a floor of some length
        places, floors, low, high = [rounds[0] - 1, rounds[0] + 1], floors * 2, low * 2, high * 2
    axes.plot(places, floors, color=FLOOR, linestyle="--", label="floor")
    axes.fill_between(places, low, high, color=FLOOR, alpha=0.2, linewidth=0, label="floor ± its deviation")
    better = points[-1][1].get("better")
    direction = {"lower": "\n↓ lower is better", "higher": "\n↑ higher is better"}.get(str(better), "")
    axes.set(title=f"{name}{direction}", ylabel=QUANTITIES.get(name.partition("-")[0], ""))
    count_rounds(axes, rounds)
    if all(map(math.isnan, values)):
        axes.text(0.5, 0.75, "not defined", transform=axes.transAxes, ha="center")
