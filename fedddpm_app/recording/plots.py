"""Plots of a run's figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_CURVES = {
    "train/loss": "clients, while training",
    "client-eval/loss": "clients, held out",
    "correct/loss": "server, on D_aux",
    "eval/loss": "test split, global model",
    "eval/ema_loss": "test split, its EMA",
}


def plot_losses(stats: Sequence[Mapping[str, object]], path: Path) -> None:
    """Plot every denoising loss of ``stats.jsonl`` over the rounds, on a log scale, into a PNG."""
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
