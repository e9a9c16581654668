"""The provenance of models that peers train from each other's: one lane per peer, an arrow from each parent."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.ticker import FuncFormatter, NullFormatter

from fedddpm_app.recording.style import FLOOR, HEAT_MAP, OTHERS, REAL, SERIES, open_figure, plain_log_axis

_WIDE = 8.0  # a wider range of values gets a log scale of colours
_MAX_NUMBERED = 120  # with more models, their numbers would overlap
_MAX_ARROWS = 1000  # more take long to draw, and hide each other
_MAX_HEIGHT = 24.0  # inches
_NO_VALUE = "#D9D9D9"
_BEST = SERIES[0]
_DARK = 0.5  # the part of the scale with colours too dark for black text


class Model(NamedTuple):
    """A submitted model.

    ``digest``: its name for its children. ``lane``: the peer. ``number``: the peer's count of models. ``time``:
    seconds. ``parents``: digests; unknown ones are those of the initial model. ``value``: lower is better; NaN if
    unknown.
    """

    digest: str
    lane: int
    number: int
    time: float
    parents: tuple[str, ...]
    value: float


def plot_provenance(models: Sequence[Model], path: Path, meaning: str, run: str = "") -> None:
    """Plot which model was trained from which into a PNG.

    Parameters
    ----------
    models : sequence of Model
        At least one, in the order of their arrival. Where a peer's times do not rise, the order is drawn in their
        place.
    path : Path
        The PNG; its folder is created.
    meaning : str
        What a value is.
    run : str
        The name of the run.
    """
    lanes = sorted({model.lane for model in models})
    places, by_time = _places(models, lanes)
    width, height = 3 + 0.7 * len(models) / len(lanes), 1.9 + 0.5 * len(lanes)
    with open_figure(
        path, _title(models, lanes, run), max(7.0, min(20.0, width)), max(3.2, min(_MAX_HEIGHT, height))
    ) as figure:
        axes = figure.subplots()
        _draw_arrows(axes, models, places)
        _draw_models(figure, axes, models, places, meaning)
        axes.plot(0, (len(lanes) - 1) / 2, "s", color=FLOOR, markersize=9, zorder=3)
        axes.annotate("initial", (0, (len(lanes) - 1) / 2), (0, -14), textcoords="offset points", ha="center", size=8)
        axes.set_yticks(range(len(lanes)), [f"peer {lane}" for lane in lanes])
        axes.set(xlabel="time in s" if by_time else "submission", ylim=(len(lanes) - 0.4, -0.6))
        axes.margins(x=0.06)


def _title(models: Sequence[Model], lanes: Sequence[int], run: str) -> str:
    arrows = sum(len(model.parents) for model in models)
    shown = f"the first {_MAX_ARROWS:,} of {arrows:,} arrows" if arrows > _MAX_ARROWS else "an arrow"
    return (
        f"Provenance{run and f' of {run}'}\n{len(models):,} submitted model{'s' * (len(models) != 1)} of "
        f"{len(lanes)} peer{'s' * (len(lanes) != 1)}; {shown} from each parent"
    )


def _places(models: Sequence[Model], lanes: Sequence[int]) -> tuple[list[tuple[float, int]], bool]:
    """Return the models' coordinates, and whether x is the time; if not, it is the order from 1."""
    last = dict.fromkeys(lanes, 0.0)
    by_time = True
    for model in models:
        by_time = by_time and model.time > last[model.lane]
        last[model.lane] = model.time
    rows = {lane: row for row, lane in enumerate(lanes)}
    return [(model.time if by_time else k, rows[model.lane]) for k, model in enumerate(models, start=1)], by_time


def _draw_arrows(axes: Axes, models: Sequence[Model], places: Sequence[tuple[float, int]]) -> None:
    """Draw an arrow from each parent; those between peers stand out."""
    initial = (0.0, max(row for _, row in places) / 2)
    known: dict[str, tuple[float, int]] = {}
    arrows: list[tuple[tuple[float, float], tuple[float, int], bool]] = []
    for model, place in zip(models, places, strict=True):
        for parent in model.parents:
            start = known.get(parent, initial)
            arrows.append((start, place, parent in known and start[1] != place[1]))
        known.setdefault(model.digest, place)
    for start, place, from_other in arrows[:_MAX_ARROWS]:
        arrow = FancyArrowPatch(
            start,
            place,
            arrowstyle="-|>",
            mutation_scale=9,
            connectionstyle="arc3,rad=0" if start[1] != place[1] else "arc3,rad=-0.25",
            color=OTHERS if from_other else REAL,
            linewidth=1.2 if from_other else 0.9,
            shrinkA=7,
            shrinkB=8,
            alpha=0.8,
        )
        axes.add_patch(arrow)


def _draw_models(
    figure: Figure, axes: Axes, models: Sequence[Model], places: Sequence[tuple[float, int]], meaning: str
) -> None:
    """Draw the models, darker for a lower value, with their numbers if there is room, and a ring around the best."""
    values = [model.value for model in models]
    known = [value for value in values if math.isfinite(value)]
    norm, colours = _scale(known), colormaps[f"{HEAT_MAP}_r"].resampled(256)
    faces = [colours(norm(value)) if math.isfinite(value) else _NO_VALUE for value in values]
    numbered = len(models) <= _MAX_NUMBERED
    x, y = zip(*places, strict=True)
    axes.scatter(x, y, s=170 if numbered else 30, c=faces, edgecolors=FLOOR, linewidths=0.8, zorder=3)
    for model, place in zip(models, places, strict=True) if numbered else ():
        colour = "white" if math.isfinite(model.value) and norm(model.value) < _DARK else "black"
        axes.text(*place, str(model.number), color=colour, ha="center", va="center", size=7, zorder=4)
    if known:
        _draw_scale(figure, axes, norm, colours, meaning)
        best = places[values.index(min(known))]
        axes.plot(*best, "o", markersize=18 if numbered else 11, markerfacecolor="none", color=_BEST, zorder=2)


def _scale(known: Sequence[float]) -> Normalize:
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if low > 0 and high > _WIDE * low:
        return LogNorm(low, high)
    return Normalize(low, high if high > low else low + 1)


def _draw_scale(figure: Figure, axes: Axes, norm: Normalize, colours: Colormap, meaning: str) -> None:
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, aspect=25, pad=0.02)
    bar.set_label(f"{meaning}\n(lower is better; the ring marks the best)", size=8)
    if isinstance(norm, LogNorm):
        plain_log_axis(bar.ax)
    else:
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
