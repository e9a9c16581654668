"""Progress as log lines, for a reader of the log and for `fedddpm run`, which parses them to show bars.

A line looks like ``[fedddpm] phase=pretrain client=2 step=300/1500 loss=0.1234 left=12s``. Only log lines
reach the user's terminal from all places: Ray actors, the ServerApp, and a remote SuperLink.

Lines also quote texts of others, such as a client's reason. The mark therefore counts at the start of a line alone, and
a quoted text never starts a line: see ``logs``.
"""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger("fedddpm")

_MARK = "[fedddpm]"
_OURS = r"(?:\(\w+ pid=[^)]*\) )?" + re.escape(_MARK)  # the start of a line, after Ray's name of an actor
_LINE = re.compile(
    _OURS + r" phase=(?P<phase>[\w-]+)(?: round=(?P<round>\d{1,18})/(?P<rounds>\d{1,18}))?"
    r"(?: client=(?P<client>\d{1,18}))? step=(?P<step>\d{1,18})/(?P<steps>\d{1,18})"
    r"(?: loss=(?P<loss>-?(?:nan|inf|\d{1,400}\.\d{4})))? left=(?P<left>\d{1,18})s",
    re.ASCII,
)
_NOTE = re.compile(_OURS + r" note: (.*)")
_DIRECTORY = re.compile(_OURS + r" run directory: (.*)")


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
    """Parse an event from a log line; None for any other line."""
    match = _LINE.fullmatch(line)
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
    """Parse a note from a log line; None for any other line."""
    match = _NOTE.fullmatch(line)
    return match and match[1]


def name_directory(directory: Path) -> None:
    """Log the run directory, which `fedddpm fetch` reads from the log."""
    logger.info("%s run directory: %s", _MARK, directory)


def parse_directory(line: str) -> str | None:
    """Parse the run directory from a log line; None for any other line."""
    match = _DIRECTORY.fullmatch(line)
    return match and match[1]
