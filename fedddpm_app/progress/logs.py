"""Where this project's log lines go, and their form: a text of another party is plain, and starts no line."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fedddpm_app.config import plain
from fedddpm_app.limits import LONGEST_TEXT
from fedddpm_app.progress.lines import logger


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
    """The message, after the level for a warning or an error; no colours and no time.

    Control characters are removed, and all lines but the first are indented: what another party wrote changes neither a
    terminal nor what a line says.
    """

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        cut = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."
        lines = [plain(line) for line in cut.splitlines()]
        shown = "\n    ".join(lines)
        return shown if record.levelno < logging.WARNING else f"{record.levelname}: {shown}"


class _LineHandler(logging.Handler):
    def __init__(self, take: Callable[[str], None]) -> None:
        super().__init__()
        self.setFormatter(_Plain())
        self._take = take

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).splitlines():
            self._take(line)
