"""Reading the JSON files of a run directory, which may be damaged or come from somewhere else."""

from pathlib import Path
from typing import Any

from fedddpm_app.disk.bounded import read_json


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises
    ------
    OSError
        When the file cannot be read.
    ValueError
        When it holds something else, or is larger than any file of a run.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"it holds a {type(found).__name__} instead of an object")
    return found


def read_run_config(directory: Path) -> dict[str, Any]:
    """Return the run config in the ``config.json`` of a run directory; errors as in ``read_object``."""
    found = read_object(directory / "config.json").get("run_config")
    if not isinstance(found, dict):
        raise ValueError("it has no run_config")
    return found
