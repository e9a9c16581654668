"""Plots of a run's metrics."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

_CURVES = {
    "train/loss": "clients, during training",
    "client-eval/loss": "clients, held out",
    "correct/loss": "server, on D_aux",
    "eval/loss": "test split, global model",
    "eval/ema_loss": "test split, its EMA",
}


_MAX_WRITTEN = 400  # a table with more cells has no room for the counts


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
    figure = Figure(figsize=(max(5, min(14, 2 + classes * 0.55)), max(2.5, min(14, 1 + clients * 0.35))))
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    left.imshow(counts.numpy(), aspect="auto", cmap="Blues", vmin=0)
    if counts.numel() <= _MAX_WRITTEN:
        dark = int(counts.max()) / 2
        for client, label in counts.nonzero().tolist():
            count = int(counts[client, label])
            colour = "white" if count > dark else "black"
            left.text(label, client, str(count), ha="center", va="center", fontsize=7, color=colour)
    shown = range(0, classes, max(1, classes // 20))
    names = [class_names[k].replace("$", r"\$") if k < len(class_names) else str(k) for k in shown]
    left.set_xticks(list(shown), names, rotation=45 if max(map(len, names)) > 3 else 0, ha="center")
    left.set(xlabel="class", ylabel="client")
    left.yaxis.set_major_locator(MaxNLocator(integer=True))
    right.barh(range(clients), counts.sum(1).tolist())
    right.set(xlabel="training images")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def plot_classes(counts: Mapping[str, Sequence[int]], path: Path) -> None:
    """Plot the class shares of generated and real images into a PNG."""
    figure = Figure(figsize=(max(5, min(14, len(counts["real"]) * 0.5)), 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for group, (name, each) in enumerate(counts.items()):
        positions = [k - 0.4 + 0.4 * group for k in range(len(each))]
        axes.bar(positions, [count / sum(each) for count in each], width=0.4, align="edge", label=name)
    axes.set(xlabel="class", ylabel="share of images")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def plot_metrics(stats: Sequence[Mapping[str, object]], path: Path) -> None:
    """Plot every metric of generated images over the rounds into a PNG, with its floor dashed.

    Without metrics no PNG is written.
    """
    floors = [key for row in stats for key in row if key.endswith("_floor")]
    names = [key.removesuffix("_floor") for key in dict.fromkeys(floors)]
    if not names:
        return
    columns = min(4, len(names))
    figure = Figure(figsize=(3 * columns, 2.4 * -(-len(names) // columns)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(-(-len(names) // columns), columns, squeeze=False).flatten()
    for axes, name in zip(grid, names, strict=False):
        rows = [row for row in stats if name in row and "round" in row]
        rounds = [row["round"] for row in rows]
        axes.plot(rounds, [row[name] for row in rows], marker="o", markersize=3)
        axes.plot(rounds, [row[f"{name}_floor"] for row in rows], linestyle="--", color="grey")
        axes.set(title=name.removeprefix("eval/"), xlabel="round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=True, alpha=0.3)
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def plot_losses(stats: Sequence[Mapping[str, object]], path: Path) -> None:
    """Plot every denoising loss of ``stats.jsonl`` over the rounds into a PNG, on a log scale."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for key, label in _CURVES.items():
        points = [(row["round"], row[key]) for row in stats if isinstance(row.get(key), float) and "round" in row]
        if points:
            rounds, losses = zip(*points, strict=True)
            axes.plot(rounds, losses, marker="o", markersize=3, label=label)
    axes.set(xlabel="round", ylabel="denoising loss", yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, alpha=0.3)
    if axes.lines:
        axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
