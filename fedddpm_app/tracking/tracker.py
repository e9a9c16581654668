"""What a tracker is: the methods that one file per library implements."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedddpm_app.config import Scalar

PROJECT = "fedddpm"  # the project or experiment, where a library groups runs


@dataclass(frozen=True)
class TrackedRun:
    """A run, as a tracker sees it.

    Attributes
    ----------
    name : str
        The name of the run directory.
    identity : str
        16 hexadecimal digits, the same when the run is resumed.
    folder : Path
        The tracker's own folder, which is empty: a resumed run gives its earlier points again.
    config : mapping of str to bool, int, float or str
        The run config, with ``<path>`` in the place of paths.
    """

    name: str
    identity: str
    folder: Path
    config: Mapping[str, Scalar]


class Tracker(Protocol):
    """Stores points and pictures with a library; what a method got is stored when it returns. Any error may be raised.

    The constructor takes a ``TrackedRun`` and starts its tracker run anew, without points of an earlier process.
    """

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """Store finite numbers by name."""

    def picture(self, server_round: int, name: str, path: Path) -> None:
        """Store a PNG."""

    def finish(self, status: str) -> None:
        """Store the final status, see ``recording.status``, and release everything."""
