"""The output of `fedddpm run`: bars on a terminal, plain lines elsewhere, and the final table."""

import logging
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fedddpm_app.cli.bars import Bars
from fedddpm_app.cli.common import PlainConsole
from fedddpm_app.evaluation.metrics import CAVEAT
from fedddpm_app.progress import ProgressEvent, logger, parse_line, parse_note
from fedddpm_app.recording.status import read_status

_LARGEST_SHOWN = 1e18
_MIN_ELAPSED_SECONDS = 1.0  # a shorter time gives no reliable rate
_MIN_SHOWN_SECONDS = 2.0  # work that takes less time gets no line
_RUN_FAILED = "ERROR: the run failed: "
_NOTEWORTHY = ("WARNING", "ERROR", "Error", "waiting for nodes")
_RAY_PREFIX = re.compile(r"^\(\w+ pid=[^)]*\) ")
_NOISE = re.compile(  # at the start of a line: a reason that a line quotes does not hide it
    r"  |(?:WARNING *: *)?(?:Since flwr 1\.32|Manually terminating ClientAppActor|"
    r"\S+:\d+: (?:Future|Deprecation)Warning: )"
)


class RunView:
    """Follows a run through its log lines.

    Parameters
    ----------
    total_steps : int or None
        Optimiser steps of the whole run; None if unknown, and then no remaining time is shown.
    console : PlainConsole
        The console to print to. A terminal and a notebook show bars, any other output one line per event.
    starting : str
        The text to show until the first event.
    live : bool
        Whether bars may be shown; a debugger in this process needs the terminal for itself.
    clock : callable
        Returns monotonic seconds.
    """

    def __init__(
        self,
        total_steps: int | None,
        console: PlainConsole,
        starting: str = "starting Flower and Ray",
        live: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_steps = total_steps
        self._starting = starting
        self.console = console
        self._failed = False
        self._last_text: str | None = None  # above bars, a repetition says nothing new
        self._clock = clock
        self._first: tuple[float, int] | None = None  # start time of the rate, and the steps done by then
        self._done: dict[tuple[str, int | None, int | None], int] = {}
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            console=console,
            wanted=live,
        )
        self._tasks: dict[tuple[str, int | None], TaskID] = {}
        self._run_task = self._bars.add_task(starting, total=total_steps, loss="")

    def __enter__(self) -> "RunView":
        self._bars.start()
        if not self._bars.is_shown:
            self.console.print(self._starting)
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def line(self, line: str) -> None:
        """Process one log line: progress moves the bars; notes, warnings and errors are printed; others are not.

        After the server's reason for a failed run, Flower's errors only repeat it.
        """
        event = parse_line(line)
        if event is None:
            text = parse_note(line) or (line if _is_noteworthy(line) and not self._failed else None)
            self._failed = self._failed or line.startswith(_RUN_FAILED)
            if text is not None and not (self._bars.is_shown and text == self._last_text):
                self.console.print(text, soft_wrap=True)
            self._last_text = text or self._last_text
            return
        if event.loss is not None:  # optimiser steps, not images
            self._done[event.phase, event.server_round, event.client] = event.step
            self._first = self._first or self._start_of(event)
        if self._bars.is_shown:
            self._move_bars(event)
        else:
            self.console.print(self._describe(event), soft_wrap=True)

    def seconds_left(self) -> float | None:
        """Estimate the seconds to the end of the run, from the steps done since the start of the first work."""
        if self._first is None or self.total_steps is None:
            return None
        began, done_then = self._first
        elapsed, done = self._clock() - began, self._steps_done() - done_then
        if elapsed < _MIN_ELAPSED_SECONDS or not done:
            return None
        return elapsed / done * max(0, self.total_steps - self._steps_done())

    def _start_of(self, event: ProgressEvent) -> tuple[float, int]:
        """Return the start time of an event's work, from its rate, and 0; for finished work, now and the steps done."""
        now = self._clock()
        if event.step < event.steps:
            return now - event.seconds_left * event.step / (event.steps - event.step), 0
        return now, self._steps_done()

    def _describe(self, event: ProgressEvent) -> str:
        round_prefix, worker = _round_and_worker(event)
        loss = f" loss {event.loss:.4f}" if event.loss is not None else ""
        left = self.seconds_left()
        rest = f" | run {self._share():3.0%}, about {left:.0f} s left" if left is not None else ""
        return f"{round_prefix}{event.phase:<9} {worker:<9} {event.step}/{event.steps}{loss}{rest}"

    def _move_bars(self, event: ProgressEvent) -> None:
        key = (event.phase, event.client)
        round_prefix, worker = _round_and_worker(event)
        for other in [other for other in self._tasks if other[0] != event.phase]:
            self._bars.remove_task(self._tasks.pop(other))
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task("", total=event.steps, loss="")
        loss = f"loss {event.loss:.4f}" if event.loss is not None else ""
        description = f"{round_prefix}{event.phase} {worker}"
        self._bars.update(self._tasks[key], completed=event.step, total=event.steps, description=description, loss=loss)
        self._bars.update(self._run_task, description="run", completed=self._steps_done(), total=self.total_steps)

    def _steps_done(self) -> int:
        return sum(self._done.values())

    def _share(self) -> float:
        return min(1.0, self._steps_done() / self.total_steps) if self.total_steps else 0.0


def _round_and_worker(event: ProgressEvent) -> tuple[str, str]:
    """Return the round of an event, as a prefix (empty outside the rounds), and the name of its worker."""
    round_prefix = f"round {event.server_round}/{event.num_rounds} " if event.server_round else ""
    return round_prefix, "server" if event.client is None else f"client {event.client}"


class WorkView(logging.Handler):
    """Shows the progress of this process: bars where they can be, elsewhere one line after each long piece of work.

    Parameters
    ----------
    console : PlainConsole
        The console to print to; other log lines are printed there too.
    """

    def __init__(self, console: PlainConsole) -> None:
        super().__init__()
        self.console = console
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._began = time.monotonic()

    def __enter__(self) -> "WorkView":
        self._before = logger.level, logger.propagate
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(self)
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
        logger.removeHandler(self)
        logger.level, logger.propagate = self._before

    def emit(self, record: logging.LogRecord) -> None:
        """Move a bar for a progress line; print any other line."""
        event = parse_line(record.getMessage())
        if event is None:
            self.console.print(record.getMessage(), soft_wrap=True)
        elif not self._bars.is_shown:
            if event.step == event.steps and time.monotonic() - self._began > _MIN_SHOWN_SECONDS:
                self.console.print(f"{event.phase} {event.step:,}/{event.steps:,}")
        else:
            if event.phase not in self._tasks:
                self._tasks[event.phase] = self._bars.add_task(event.phase)
            self._bars.update(self._tasks[event.phase], completed=event.step, total=event.steps)


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
    for name in ("samples", "auxiliary", "plots", "pipeline", "stats.jsonl", "summary.json", "log.txt"):
        if (directory / name).exists():
            console.print(str(directory / name), soft_wrap=True)
    console.print(f"all of it on one page: fedddpm report {shlex.quote(str(directory))}", soft_wrap=True)
    console.print(f"run directory: {directory}", soft_wrap=True)


def _is_noteworthy(line: str) -> bool:
    """Return whether a log line is a warning or an error; the indented lines of a traceback are only in ``log.txt``."""
    is_noise = _NOISE.match(_RAY_PREFIX.sub("", line))
    return not is_noise and any(text in line for text in _NOTEWORTHY)
