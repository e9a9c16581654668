"""The protocol of what gets a run's lines and pictures beside the run directory: see ``tracking``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Sink(Protocol):
    """Takes a run's lines and pictures at once; nothing in it ends the run or makes it wait."""

    def line(self, line: Mapping[str, object]) -> None:
        """Take a line of ``stats.jsonl``."""

    def picture(self, path: Path, name: str, *, server_round: int | None = None, of_clients: bool = False) -> None:
        """Take a PNG that has been written, with its name, which is the same over the rounds.

        ``of_clients``: it shows clients' images, or images of clients' own models. Without ``server_round`` it belongs
        to the round of the last line.
        """

    def end(self, summary: Mapping[str, object], seconds: float) -> None:
        """Take the content of ``summary.json``, and return after ``seconds`` at the latest."""
