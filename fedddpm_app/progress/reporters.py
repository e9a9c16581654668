"""Reporters of a piece of work: they log how far it is, at most every few seconds and at its end."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedddpm_app.progress.lines import ProgressEvent, report

if TYPE_CHECKING:
    from torch import Tensor  # the command line logs, and does not wait for torch

REPORT_EVERY_SECONDS = 5.0
REPORT_ITEMS_EVERY_SECONDS = 1.0


@dataclass(frozen=True)
class StepReport:
    """The progress of a training; ``loss`` is the mean since the last report, ``seconds_left`` an estimate."""

    step: int
    steps: int
    loss: float
    seconds_left: float


class StepReporter:
    """Calls ``on_report`` only every few seconds and at the end, so that reading the loss does not slow down a loop.

    Parameters
    ----------
    steps : int
        The number of steps.
    on_report : callable, optional
        Takes a ``StepReport``.
    """

    def __init__(self, steps: int, on_report: Callable[[StepReport], None] | None) -> None:
        self.steps = steps
        self.on_report = on_report
        self.began = self.last_time = time.perf_counter()
        self.last_step = 0

    def after_step(self, step: int, losses: "Tensor") -> None:
        """Report if a report is due; ``losses`` holds the losses of the first ``step`` steps, on any device."""
        now = time.perf_counter()
        due = now - self.last_time >= REPORT_EVERY_SECONDS or step == self.steps
        if self.on_report is None or not due:
            return
        loss = float(losses[self.last_step : step].mean())
        seconds_left = (now - self.began) / step * (self.steps - step)
        self.on_report(StepReport(step, self.steps, loss, seconds_left))
        self.last_time, self.last_step = now, step


class ItemReporter:
    """Logs the number of finished items (mostly images) of a piece of work, about every second and at the end.

    Parameters
    ----------
    phase : str
        As in ``ProgressEvent``.
    total : int
        The number of items.
    **where
        ``client``, ``server_round`` and ``num_rounds`` of the events.
    """

    def __init__(self, phase: str, total: int, **where: int) -> None:
        self.phase = phase
        self.total = total
        self._where = where
        self._began = self._last = time.perf_counter()

    def after_item(self, done: int) -> None:
        """Report if a report is due; ``done`` is the number of finished items."""
        now = time.perf_counter()
        if now - self._last < REPORT_ITEMS_EVERY_SECONDS and done < self.total:
            return
        self._last = now
        left = (now - self._began) / max(1, done) * (self.total - done)
        report(ProgressEvent(self.phase, done, self.total, round(left), **self._where))


def reported(batches: "Iterable[Tensor]", phase: str, total: int) -> "Iterator[Tensor]":
    """Yield the batches, and log how many of ``total`` items have been yielded."""
    reporter, done = ItemReporter(phase, total), 0
    for batch in batches:
        done += len(batch)
        reporter.after_item(done)
        yield batch


def reporter(
    phase: str, client: int | None = None, server_round: int | None = None, num_rounds: int | None = None
) -> Callable[[StepReport], None]:
    """Return a function that logs the step reports of a training as events; see ``ProgressEvent``."""

    def on_report(done: StepReport) -> None:
        left = round(done.seconds_left)
        report(ProgressEvent(phase, done.step, done.steps, left, done.loss, client, server_round, num_rounds))

    return on_report
