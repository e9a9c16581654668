"""The progress of a run, from its log lines: bars on a terminal, plain lines elsewhere."""

import re
import time
from collections.abc import Callable

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn

from fedddpm_app.cli.bars import Bars
from fedddpm_app.cli.common import PlainConsole
from fedddpm_app.progress import ProgressEvent, parse_line, parse_note

_MIN_ELAPSED_SECONDS = 1.0  # a shorter time gives no reliable rate
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
    steps_before : int
        Of a resumed run, the steps that are done already.
    """

    def __init__(
        self,
        total_steps: int | None,
        console: PlainConsole,
        starting: str = "starting Flower and Ray",
        live: bool = True,
        clock: Callable[[], float] = time.monotonic,
        steps_before: int = 0,
    ) -> None:
        self.total_steps = total_steps
        self._starting = starting
        self.console = console
        self._failed = False
        self._last_text: str | None = None  # above bars, a repetition says nothing new
        self._clock = clock
        self._steps_before = steps_before
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
        """Return the start time of an event's work, from its rate, and the steps done before; of finished work, now."""
        now = self._clock()
        if event.step < event.steps:
            return now - event.seconds_left * event.step / (event.steps - event.step), self._steps_before
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
        return self._steps_before + sum(self._done.values())

    def _share(self) -> float:
        return min(1.0, self._steps_done() / self.total_steps) if self.total_steps else 0.0


def _round_and_worker(event: ProgressEvent) -> tuple[str, str]:
    """Return the round of an event, as a prefix (empty outside the rounds), and the name of its worker."""
    round_prefix = f"round {event.server_round}/{event.num_rounds} " if event.server_round else ""
    return round_prefix, "server" if event.client is None else f"client {event.client}"


def _is_noteworthy(line: str) -> bool:
    """Return whether a log line is a warning or an error; the indented lines of a traceback are only in ``log.txt``."""
    is_noise = _NOISE.match(_RAY_PREFIX.sub("", line))
    return not is_noise and any(text in line for text in _NOTEWORTHY)
