"""Protocols of the objects that the apps pass to a strategy: a strategy knows nothing of files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.weights import Weights


class Recorder(Protocol):
    """Stores the results of a run."""

    @property
    def first_run(self) -> str:
        """The id of the first process of a resumed run; empty for a new run."""

    @property
    def scratch(self) -> Path:
        """A folder of the run for files that are removed after they are read."""

    @property
    def durable(self) -> Path:
        """A folder that outlives the run, for finished pieces of work that a restarted run reuses."""

    @property
    def unfinished(self) -> Path:
        """A folder for finished pieces of a phase, which a resumed run reads."""

    @property
    def stats(self) -> Sequence[Mapping[str, object]]:
        """The objects of ``stats.jsonl`` so far."""

    @property
    def auxiliary_digest(self) -> str:
        """The SHA-256 of the stored D_aux; empty if there is none."""

    def append(self, stats: Mapping[str, object]) -> None:
        """Write one object to ``stats.jsonl``."""

    def append_to(self, name: str, entry: Mapping[str, object]) -> None:
        """Append an object to another file of the run with one JSON object per line; the keys keep their order."""

    def keep_of(self, name: str, count: int) -> Sequence[Mapping[str, Any]]:
        """Keep the first ``count`` objects of such a file, remove the others, and return the kept ones."""

    def entries_of(self, name: str) -> Sequence[Mapping[str, Any]]:
        """Return all objects of such a file, which nothing removes; empty without one."""

    def save_auxiliary(self, data: ImageTensors, clients: list[int]) -> None:
        """Store D_aux; ``clients`` holds the partition id of each image."""

    def load_auxiliary(self) -> tuple[ImageTensors, list[int]] | None:
        """Return the stored D_aux on the CPU, with the partition id of each image; None if there is none."""

    def save_checkpoint(
        self,
        server_round: int,
        models: Mapping[str, Weights],
        state: Mapping[str, object],
        newest: int,
        is_permanent: Callable[[int], bool],
    ) -> None:
        """Start to store a checkpoint; then remove all except the ``newest``, and those for which ``is_permanent``.

        ``models`` holds weights that do not change afterwards. ``state`` consists of tensors, arrays, numbers, texts,
        and lists and mappings of them.
        """

    def wait_for_checkpoint(self) -> bool:
        """Wait until the last checkpoint is stored, or has failed with a warning; return whether it is stored."""

    def check_checkpoint(self) -> None:
        """Wait for the last checkpoint; raise an ``OSError`` if it could not be stored."""

    def discard_auxiliary(self) -> None:
        """Forget the stored D_aux: it is not the set that the run uses."""
