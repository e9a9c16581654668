"""The progress of work in this process: bars on a terminal, plain lines elsewhere."""

import logging
import time

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn

from fedddpm_app.cli.bars import Bars
from fedddpm_app.cli.common import PlainConsole
from fedddpm_app.progress import logger, parse_line

_MIN_SHOWN_SECONDS = 2.0  # work that takes less time gets no line


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
