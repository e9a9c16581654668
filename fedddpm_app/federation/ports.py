"""Protocols of the objects that the apps pass to a strategy: a strategy knows nothing of files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from fedddpm_app.diffusion.images import ImageTensors


class Recorder(Protocol):
    """Stores the results of a run."""

    @property
    def scratch(self) -> Path:
        """A folder of the run for files that are removed after they are read."""

    @property
    def durable(self) -> Path:
        """A folder that outlives the run, for finished pieces of work that a restarted run reuses."""

    def append(self, stats: Mapping[str, object]) -> None:
        """Write one object to ``stats.jsonl``."""

    def save_auxiliary(self, data: ImageTensors, clients: list[int]) -> None:
        """Store D_aux; ``clients`` holds the partition id of each image."""
