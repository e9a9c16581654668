"""Reading the run config of a run directory, which may be damaged or come from somewhere else."""

from pathlib import Path
from typing import Any

from fedddpm_app.disk.bounded import read_object
from fedddpm_app.recording.directory import CONFIG


def read_run_config(directory: Path) -> dict[str, Any]:
    """Return the run config in the ``config.json`` of a run directory; errors as in ``read_object``."""
    found = read_object(directory / CONFIG).get("run_config")
    if not isinstance(found, dict):
        raise ValueError("it has no run_config")
    return found
