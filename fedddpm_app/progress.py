"""Progress as log lines, for a reader of the log and for `fedddpm run`, which parses them to show bars.

A line looks like ``[fedddpm] phase=pretrain client=2 step=300/1500 loss=0.1234 left=12s``. Only log lines
reach the user's terminal from all places: Ray actors, the ServerApp, and a remote SuperLink.
"""

import logging
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

REPORT_EVERY_SECONDS = 5.0
REPORT_ITEMS_EVERY_SECONDS = 1.0
logger = logging.getLogger("fedddpm")

_MARK = "[fedddpm]"
_LINE = re.compile(
    re.escape(_MARK) + r" phase=(?P<phase>[\w-]+)(?: round=(?P<round>\d{1,18})/(?P<rounds>\d{1,18}))?"
    r"(?: client=(?P<client>\d{1,18}))? step=(?P<step>\d{1,18})/(?P<steps>\d{1,18})"
    r"(?: loss=(?P<loss>-?(?:nan|inf|\d{1,400}\.\d{4})))? left=(?P<left>\d{1,18})s"
)


@dataclass(frozen=True)
class ProgressEvent:
    """The progress of one worker in one piece of work.

    Attributes
    ----------
    phase : str
        The name of the work, such as ``pretrain``, ``auxiliary``, ``train`` or ``correct``.
    step, steps : int
        Steps (or images) done, and their total number.
    seconds_left : int
        Estimated seconds to the end of this piece of work.
    loss : float, optional
        Mean loss since the last event.
    client : int, optional
        Partition id; None on the server.
    server_round, num_rounds : int, optional
        The round, from 1, and the number of rounds; None outside the rounds.
    """

    phase: str
    step: int
    steps: int
    seconds_left: int
    loss: float | None = None
    client: int | None = None
    server_round: int | None = None
    num_rounds: int | None = None

    def to_line(self) -> str:
        """Format the event as a log line."""
        parts = [f"{_MARK} phase={self.phase}"]
        if self.server_round is not None:
            parts.append(f"round={self.server_round}/{self.num_rounds or self.server_round}")
        if self.client is not None:
            parts.append(f"client={self.client}")
        parts.append(f"step={self.step}/{self.steps}")
        if self.loss is not None:
            parts.append(f"loss={self.loss:.4f}")
        return " ".join([*parts, f"left={self.seconds_left}s"])


def parse_line(line: str) -> ProgressEvent | None:
    """Parse an event from a log line, after any prefix; None if the line has no event."""
    match = _LINE.search(line)
    if match is None:
        return None
    found = match.groupdict()

    def number(name: str) -> int | None:
        return None if found[name] is None else int(found[name])

    return ProgressEvent(
        phase=found["phase"],
        step=int(found["step"]),
        steps=int(found["steps"]),
        seconds_left=int(found["left"]),
        loss=None if found["loss"] is None else float(found["loss"]),
        client=number("client"),
        server_round=number("round"),
        num_rounds=number("rounds"),
    )


def report(event: ProgressEvent) -> None:
    """Log an event."""
    logger.info(event.to_line())


def note(text: str) -> None:
    """Log a text that the user should see at once, such as an algorithm's decision."""
    logger.info("%s note: %s", _MARK, text)


def parse_note(line: str) -> str | None:
    """Parse a note from a log line, after any prefix; None if the line has no note."""
    _, found, text = line.partition(f"{_MARK} note: ")
    return text if found else None


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

    def after_step(self, step: int, losses: Tensor) -> None:
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


def reported(batches: Iterable[Tensor], phase: str, total: int) -> Iterator[Tensor]:
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


def configure_logging() -> None:
    """Send this project's log lines to standard output; further calls change nothing."""
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(_Plain())
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


@contextmanager
def logging_to(take: Callable[[str], None]) -> Iterator[None]:
    """Send the log lines of this project, of Flower and of Python's warnings to ``take`` only, in the body."""
    handler = _LineHandler(take)
    before = []
    logging.captureWarnings(True)
    for name, level in ((logger.name, logging.INFO), ("flwr", logging.INFO), ("py.warnings", logging.WARNING)):
        source = logging.getLogger(name)
        before.append((source, source.handlers, source.level, source.propagate))
        source.handlers, source.propagate = [handler], False
        source.setLevel(level)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for source, handlers, level, propagate in before:
            source.handlers, source.propagate = handlers, propagate
            source.setLevel(level)


class _Plain(logging.Formatter):
    """The message, after the level for a warning or an error; no colours and no time."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname}: {text}"

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        return textwrap.indent(super().formatException(ei), "    ")


class _LineHandler(logging.Handler):
    def __init__(self, take: Callable[[str], None]) -> None:
        super().__init__()
        self.setFormatter(_Plain())
        self._take = take

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).splitlines():
            self._take(line)
