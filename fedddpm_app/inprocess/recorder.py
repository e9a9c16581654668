"""The records of a run that writes no files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedddpm_app.training.task import TrainingData


class MemoryRecorder:
    """Keeps the records of a run in memory; see ``federation.ports.Recorder``."""

    def __init__(self, scratch: Path) -> None:
        self.first_run = ""
        self.scratch = self.durable = self.unfinished = scratch
        self.stats: list[dict[str, Any]] = []
        self.entries: dict[str, list[Mapping[str, object]]] = {}
        self.auxiliary_data: TrainingData | None = None
        self.auxiliary_digest = ""

    def append(self, stats: Mapping[str, object]) -> None:
        """Keep one object of ``stats.jsonl``."""
        self.stats.append(dict(stats))

    def append_to(self, name: str, entry: Mapping[str, object]) -> None:
        """Keep an object of another file."""
        self.entries.setdefault(name, []).append(entry)

    def keep_of(self, name: str, count: int) -> list[Mapping[str, object]]:
        """Keep the first objects of another file, and return them."""
        self.entries[name] = self.entries.get(name, [])[:count]
        return self.entries[name]

    def entries_of(self, name: str) -> list[Mapping[str, object]]:
        """Return all objects of another file."""
        return self.entries.get(name, [])

    def save_auxiliary(self, data: TrainingData, clients: list[int]) -> None:
        """Keep D_aux."""
        self.auxiliary_data = data

    def load_auxiliary(self) -> None:
        """Return None: a run in memory is not resumed."""

    def save_checkpoint(self, *_: object) -> None:
        """Keep nothing."""

    def wait_for_checkpoint(self) -> bool:
        """Return True: there is nothing to store."""
        return True

    def check_checkpoint(self) -> None:
        """Return at once."""

    def discard_auxiliary(self) -> None:
        """Keep nothing."""
