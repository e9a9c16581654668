"""Weights & Biases: one run, offline unless the user sets ``WANDB_MODE``.

A line of ``stats.jsonl`` is a row of the run's history, with ``round`` as the axis of all curves. The library's own
reports, which are requests too, are off, and so are its collection of code, host, packages and console.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from fedddpm_app.recording.status import COMPLETED
from fedddpm_app.tracking.tracker import PROJECT, TrackedRun, Tracker

os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when the library is imported

import wandb

_ROUND = "round"
_FLUSH_SECONDS = 0.1  # a process that is killed loses what is younger


class WandbTracker:
    """Writes a run of W&B; see ``Tracker``. Online, a resumed run goes on in the run with the same id."""

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("WANDB_CACHE_DIR", str(run.folder / "cache"))
        settings = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            silent=True,
            symlink=False,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
            x_transaction_log_flush_interval=_FLUSH_SECONDS,
        )
        self._rows = 0
        self._run = wandb.init(
            mode=os.environ.get("WANDB_MODE") or "offline",
            dir=os.environ.get("WANDB_DIR") or run.folder,
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=run.name,
            id=run.identity,
            resume="allow",
            config={**run.config},
            settings=settings,
        )
        self._run.define_metric(_ROUND)
        self._run.define_metric("*", step_metric=_ROUND)

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """Add a row; of a row that is there from before a resume, W&B keeps the first version."""
        self._add({_ROUND: server_round, **values})

    def picture(self, server_round: int, name: str, path: Path) -> None:
        """Add a row with the picture."""
        self._add({_ROUND: server_round, name: wandb.Image(str(path))})

    def finish(self, status: str) -> None:
        """Write the status to the summary, and end the run with an exit code that says the same."""
        self._run.summary["status"] = status
        self._run.finish(exit_code=0 if status == COMPLETED else 1)

    def _add(self, row: dict[str, object]) -> None:
        self._run.log(row, step=self._rows, commit=True)
        self._rows += 1


def open_tracker(run: TrackedRun) -> Tracker:
    """Return the tracker of a run."""
    return WandbTracker(run)
