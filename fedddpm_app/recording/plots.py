"""Plots over classes: the clients' images, and the classes of generated images."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from fedddpm_app.recording.style import CLIENTS, FLOOR, GENERATED, HEAT_MAP, REAL, class_labels, number, open_figure

_MAX_WRITTEN = 400  # a table with more cells has no room for the counts
_MAX_CLASSES = 200  # a plot with more classes shows those that differ most
_MAX_BARS = 50  # with more clients, their sizes are not written
_SMALLEST = 5.5  # points: the smallest legible text
_DEVIATIONS = 1.96  # 95 % of a normal distribution


def plot_partition(counts: Tensor, class_names: Sequence[str], path: Path) -> None:
    """Plot the partition into a PNG: a table of clients by classes, and the clients' sizes.

    Parameters
    ----------
    counts : Tensor
        int64, shape (clients, classes): numbers of training images.
    class_names : sequence of str
        By class; a class without a name gets its number.
    path : Path
        The PNG; its folder is created.
    """
    clients, classes = counts.shape
    width, height = max(6.0, min(20.0, 3 + classes * 0.55)), max(3.0, min(16.0, 1.8 + clients * 0.3))
    names = class_labels(class_names, classes)
    step, size, upright = _fit(names, width * 0.7)
    height += max(map(len, names)) * size * 0.62 / 72 if upright else 0
    title = (
        f"Training images per client and class: {int(counts.sum()):,} images, "
        f"{clients:,} client{'s' * (clients != 1)}, {classes:,} class{'es' * (classes != 1)}"
    )
    with open_figure(path, title, width, height) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(max(2, min(6, classes * 0.3)), 1))
        _heat_map(figure, left, counts)
        left.set_xticks(range(0, classes, step), names[::step], fontsize=size, rotation=90 if upright else 0)
        left.set(xlabel=f"class ({step} columns per name)" if step > 1 else "class", ylabel="client")
        left.yaxis.set_major_locator(MaxNLocator(nbins=min(clients, 40), integer=True, min_n_ticks=1))
        bars = right.barh(range(clients), counts.sum(1).tolist(), color=CLIENTS)
        if clients <= _MAX_BARS:
            right.bar_label(bars, fmt="{:,.0f}", padding=2, fontsize=8)
            right.margins(x=0.35)
        right.set(xlabel="training images")
        right.xaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
        right.grid(visible=False, axis="y")


def _heat_map(figure: Figure, axes: Axes, counts: Tensor) -> None:
    """Show the counts as colours, an empty cell as white; write them if there is room, else show the scale."""
    colours = ListedColormap(colormaps[HEAT_MAP](np.linspace(0.15, 1, 256))).with_extremes(bad="white")
    most = max(1, int(counts.max()))
    image = axes.imshow(np.ma.masked_equal(counts.numpy(), 0), aspect="auto", cmap=colours, vmin=0, vmax=most)
    axes.grid(visible=False)
    if counts.numel() > _MAX_WRITTEN:
        bar = figure.colorbar(image, ax=figure.axes[:2], location="top", shrink=0.5, aspect=50)
        bar.ax.set_title("images in a cell")
        return
    for client, label in counts.nonzero().tolist():
        count = int(counts[client, label])
        colour = "white" if count > most * 0.45 else "black"
        axes.text(label, client, str(count), ha="center", va="center", fontsize=8, color=colour)


def _fit(names: list[str], width: float) -> tuple[int, float, bool]:
    """Return how to name columns in ``width`` inches: every k-th one, the size in points, and whether upright."""
    points = width / len(names) * 72  # the width of a column
    step = math.ceil(_SMALLEST * 1.15 / points)
    size = max(_SMALLEST, min(9.0, points * step / 1.15))
    return step, size, max(map(len, names)) * size * 0.62 > points * step


def plot_classes(metric: Mapping[str, Any], class_names: Sequence[str], path: Path, owner: str = "") -> None:
    """Plot the class shares of generated and real images into a PNG.

    The bars of chance show where 95 % of the shares would be if the generated images were as many real ones, by the
    normal approximation: p ± 1.96 sqrt(p (1 - p) (1/n + 1/m)) with the real share p, n generated and m real images.

    Parameters
    ----------
    metric : mapping
        The metric ``class-tv`` of one model as in ``summary.json``, with ``class_counts``.
    class_names : sequence of str
        By class; a class without a name gets its number.
    path : Path
        The PNG; its folder is created.
    owner : str
        The name of the model, if there are several.
    """
    counts = {name: np.asarray(each, dtype=np.float64) for name, each in metric["class_counts"].items()}
    sizes = {name: max(1.0, each.sum()) for name, each in counts.items()}
    generated, real = (100 * counts[name] / sizes[name] for name in ("generated", "real"))
    names, shown = class_labels(class_names, len(real)), np.arange(len(real))
    left_out = ""
    if len(shown) > _MAX_CLASSES:
        shown = np.sort(np.abs(generated - real).argsort(kind="stable")[::-1][:_MAX_CLASSES])
        left_out = f"\nthe {_MAX_CLASSES} of {len(real):,} classes that differ most"
    chance = _DEVIATIONS * np.sqrt(real * (100 - real) * sum(1 / size for size in sizes.values()))[shown]
    title = (
        f"Classes of {metric['n']:,} generated images{owner and f' of {owner}'} ({_how(metric)})\n"
        f"class-tv {_value(metric, 'value')}, floor {_value(metric, 'floor')} "
        f"(equally many real images); lower is better{left_out}"
    )
    places = np.arange(len(shown))
    with open_figure(path, title, 7.5, max(3.0, 1.7 + 0.26 * len(shown))) as figure:
        axes = figure.subplots()
        label = f"real ({metric['reference']} split, {int(sizes['real']):,})"
        axes.barh(places - 0.2, generated[shown], height=0.4, color=GENERATED, label="generated, by the classifier")
        axes.barh(places + 0.2, real[shown], height=0.4, color=REAL, label=label)
        low = np.minimum(chance, real[shown])
        whiskers: dict[str, Any] = {"fmt": "none", "ecolor": FLOOR, "elinewidth": 1, "capsize": 2}
        axes.errorbar(real[shown], places + 0.2, xerr=[low, chance], label="95 % by chance", **whiskers)
        axes.set_yticks(places, [names[k] for k in shown])
        axes.set(xlabel="share of the images in %", ylabel="class", ylim=(len(shown) - 0.4, -0.6), xlim=(0, None))
        axes.grid(visible=False, axis="y")
        figure.legend(loc="outside lower center", ncols=3)


def _how(metric: Mapping[str, Any]) -> str:
    return f"{metric['weights']} weights, {metric['sampler']}, {metric['steps']} steps"


def _value(metric: Mapping[str, Any], key: str) -> str:
    value = number(metric[key])
    return "not defined" if math.isnan(value) else f"{value:.3f}"
