"""Trackio: one run in a database in the run directory, or in the user's ``TRACKIO_DIR``. No request is made.

``trackio.init`` asks the Hugging Face hub for the user's name, and stores lines some time later. Trackio's storage,
which its own importers use, does neither, but is not part of its public interface: so the extra allows one version.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedddpm_app.tracking.tracker import PROJECT, TrackedRun, Tracker

_FOLDER = "TRACKIO_DIR"


class TrackioTracker:
    """Writes a run of Trackio; see ``Tracker``.

    Raises
    ------
    RuntimeError
        When this process has used Trackio with another folder: it reads ``TRACKIO_DIR`` only once.
    """

    def __init__(self, run: TrackedRun) -> None:
        self._about, self._round = run, 0
        self._storage, self._image = _import_for(Path(os.environ.get(_FOLDER) or run.folder))
        self._storage.delete_run(PROJECT, run.name, run_id=run.identity)

    def log(self, server_round: int, values: Mapping[str, object]) -> None:
        """Add a row."""
        self._round, run = server_round, self._about
        config = {**run.config}
        self._storage.bulk_log(PROJECT, run.name, [{**values}], [server_round], config=config, run_id=run.identity)

    def picture(self, server_round: int, name: str, path: Path) -> None:
        """Copy the picture, and add a row with its place."""
        image = self._image(path)
        image._save(PROJECT, self._about.name, server_round)
        self.log(server_round, {name: image._to_dict()})

    def finish(self, status: str) -> None:
        """Add a row with the status: Trackio has no other place for it."""
        self.log(self._round, {"status": status})


def _import_for(folder: Path) -> tuple[Any, Any]:
    """Return Trackio's storage and its class of images; see ``TrackioTracker`` for errors."""
    before = os.environ.get(_FOLDER)
    os.environ[_FOLDER] = str(folder)
    try:
        import trackio
        from trackio.sqlite_storage import SQLiteStorage
    finally:
        if before is None:
            del os.environ[_FOLDER]
    if folder != trackio.TRACKIO_DIR:
        raise RuntimeError(f"this process writes to {trackio.TRACKIO_DIR} already, and Trackio takes one folder")
    return SQLiteStorage, trackio.Image


def open_tracker(run: TrackedRun) -> Tracker:
    """Return the tracker of a run."""
    return TrackioTracker(run)
