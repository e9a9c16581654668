"""The tables of a run's results."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from fedddpm_app.cli.common import PlainConsole
from fedddpm_app.diffusion.pipelines import PIPELINE
from fedddpm_app.evaluation.metrics import CAVEAT
from fedddpm_app.recording.layout import AUXILIARY, LOG, PLOTS, SAMPLES, STATS, SUMMARY
from fedddpm_app.recording.status import read_status

_LARGEST_SHOWN = 1e18


def print_metrics(metrics: Sequence[Mapping[str, Any]], console: PlainConsole) -> None:
    """Print metrics in the form of ``summary.json``: one table per set of images, then the notes on the metrics."""
    for n, weights, sampler, steps in dict.fromkeys(map(_sampling_of, metrics)):
        title = f"{n:,} generated images ({weights} weights, {sampler}, {steps} steps)"
        table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=0)
        table.add_column("metric", no_wrap=True)
        for column in ("value", "±", "against", "floor", "±", "floor of"):
            table.add_column(column, justify="right", no_wrap=True)
        for metric in metrics:
            if _sampling_of(metric) == (n, weights, sampler, steps):
                value, std, floor, floor_std = (_rounded(metric[k]) for k in ("value", "std", "floor", "floor_std"))
                real = f"{metric['reference_n']:,} {metric['reference']}"
                sizes = f"{metric['floor_n']:,} : {metric['floor_reference_n']:,}"
                table.add_row(Text(metric["name"]), value, std, Text(real), floor, floor_std, sizes)
        console.print(table)
    for note in dict.fromkeys(part for metric in metrics for part in _caveats(metric)):
        names = _names([metric for metric in metrics if note in _caveats(metric)], metrics)
        console.print(f"{names}: {note}", soft_wrap=True)


def _names(noted: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]]) -> str:
    """Return the names of metrics; for all metrics of a set of images, the words "all metrics of N images"."""
    first = _sampling_of(noted[0])
    if len(noted) > 1 and list(noted) == [metric for metric in metrics if _sampling_of(metric) == first]:
        return f"all metrics of the {first[0]:,} images"
    return ", ".join(metric["name"] for metric in noted)


def _caveats(metric: Mapping[str, Any]) -> list[str]:
    return metric["note"].split(CAVEAT) if metric["note"] else []


def _sampling_of(metric: Mapping[str, Any]) -> tuple[int, str, str, int]:
    """Return the number, weights, sampler and steps, which identify a set of generated images."""
    return metric["n"], metric["weights"], metric["sampler"], metric["steps"]


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _shown(key: str, value: float) -> str:
    """Return a number of ``summary.json`` with the digits that its kind needs."""
    if abs(value) > _LARGEST_SHOWN:
        return f"over {_LARGEST_SHOWN:g}"
    if key.endswith("dp_delta"):
        return f"{value:g}"
    return f"{value:.4f}" if key.endswith(("loss", "dp_epsilon")) else f"{value:,.1f}".removesuffix(".0")


def print_summary(directory: Path, console: PlainConsole) -> None:
    """Print the final table of a run from its ``summary.json``, and the paths of its files."""
    status = read_status(directory)
    summary = status.summary
    table = Table(title=f"{directory.name}: {status.state}", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for key, value in summary.items():
        if isinstance(value, int | float):
            table.add_row(key, _shown(key, value))
    console.print(table)
    metrics = summary.get("metrics")
    if isinstance(metrics, list) and metrics:
        try:
            print_metrics(metrics, console)
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
            console.print("the metrics in summary.json are damaged, and are not shown")
    for reason in ("stopped_by", "error"):
        if reason in summary:
            prefix = "stopped by " if reason == "stopped_by" else ""
            console.print(f"{prefix}{summary[reason]}", soft_wrap=True)
    for name in (SAMPLES, AUXILIARY, PLOTS, PIPELINE, STATS, SUMMARY, LOG):
        if (directory / name).exists():
            console.print(str(directory / name), soft_wrap=True)
    console.print(f"all of it on one page: fedddpm report {shlex.quote(str(directory))}", soft_wrap=True)
    console.print(f"run directory: {directory}", soft_wrap=True)
