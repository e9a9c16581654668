"""MLflow: one run in a database in the run directory, or where the user's ``MLFLOW_TRACKING_URI`` leads.

The library's usage reports, which are requests, are off.
"""

import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from fedddpm_app.recording.status import COMPLETED, INTERRUPTED
from fedddpm_app.tracking.tracker import PROJECT, TrackedRun, Tracker

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when the library is imported

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

_IDENTITY, _STATUS = "fedddpm.identity", "fedddpm.status"
_NOT_A_NAME = re.compile(r"[^\w\-. :/]")
_LARGEST_BATCH = 100
_ENDS = {COMPLETED: "FINISHED", INTERRUPTED: "KILLED"}


class MlflowTracker:
    """Writes a run of MLflow; see ``Tracker``. In place of the run of an earlier process, it makes a new one."""

    def __init__(self, run: TrackedRun) -> None:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)  # a new database gives many lines
        own = os.environ.get("MLFLOW_TRACKING_URI", "")
        self._client = MlflowClient(own or f"sqlite:///{run.folder / 'mlflow.db'}")
        experiment = self._experiment(None if own else (run.folder / "artifacts").as_uri())
        for before in self._client.search_runs([experiment], f"tags.`{_IDENTITY}` = '{run.identity}'"):
            self._client.delete_run(before.info.run_id)
        self._run = self._client.create_run(experiment, run_name=run.name).info.run_id
        self._client.log_batch(self._run, tags=[RunTag(_IDENTITY, run.identity)])
        self._log("params", [Param(key, str(value)) for key, value in run.config.items()])

    def _experiment(self, pictures: str | None) -> str:
        """Return the id of the experiment, which ``MLFLOW_EXPERIMENT_NAME`` may name; create it if needed."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name, pictures))

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """Add a metric for each value; a character that MLflow does not allow in a name becomes "_"."""
        now = time.time_ns() // 10**6
        found = [Metric(_NOT_A_NAME.sub("_", name), value, now, server_round) for name, value in values.items()]
        self._log("metrics", found)

    def _log(self, kind: str, items: Sequence[object]) -> None:
        for start in range(0, len(items), _LARGEST_BATCH):
            self._client.log_batch(self._run, **{kind: items[start : start + _LARGEST_BATCH]})

    def picture(self, server_round: int, name: str, path: Path) -> None:
        """Add the picture under its name, with the round as its step."""
        with Image.open(path) as image:
            self._client.log_image(self._run, image, key=name, step=server_round, synchronous=True)

    def finish(self, status: str) -> None:
        """End the run with MLflow's word for the status, and the status itself as a tag."""
        self._client.set_tag(self._run, _STATUS, status)
        self._client.set_terminated(self._run, _ENDS.get(status, "FAILED"))


def open_tracker(run: TrackedRun) -> Tracker:
    """Return the tracker of a run."""
    return MlflowTracker(run)
