"""What the apps hand in to a strategy, as protocols: a strategy knows no files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from fedddpm_app.diffusion.images import ImageTensors


class Recorder(Protocol):
    """Keeps what a run produces."""

    @property
    def scratch(self) -> Path:
        """A folder of the run for files that are removed when read."""

    @property
    def durable(self) -> Path:
        """A folder that outlives the run, for finished pieces of work that a run which starts again takes over."""

    def append(self, stats: Mapping[str, object]) -> None:
        """Write one object to ``stats.jsonl``."""

    def save_auxiliary(self, data: ImageTensors, clients: list[int]) -> None:
        """Keep D_aux; ``clients`` holds the partition id that each image came from."""
