"""Reading the ``config.json`` and ``stats.jsonl`` of a run, which may be damaged or come from somewhere else."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fedddpm_app import limits
from fedddpm_app.config import ConfigError
from fedddpm_app.disk.bounded import read_bytes, read_object
from fedddpm_app.progress import logger
from fedddpm_app.recording.layout import CONFIG

DATA = "data"  # in config.json: the digests of the data that the run began with


def read_run_config(directory: Path) -> dict[str, Any]:
    """Return the run config in the ``config.json`` of a run directory; errors as in ``read_object``."""
    found = read_object(directory / CONFIG).get("run_config")
    if not isinstance(found, dict):
        raise ValueError("it has no run_config")
    return found


def run_config_of(directory: Path, given: str = "", fix: str = "give the folder of a run") -> dict[str, Any]:
    """Return the run config of a run directory that a user has named, by ``given`` (an option and its value).

    Raises
    ------
    ConfigError
        If it cannot be read, with the ``fix``.
    """
    try:
        return read_run_config(directory)
    except (OSError, ValueError) as error:
        reason, option = getattr(error, "strerror", None) or error, given and f"{given}: "
        raise ConfigError(f"{option}{directory / CONFIG} cannot be read ({reason}); {fix}.") from error


def first_run_of(directory: Path) -> str:
    """Return the id of a run's first process, which names the states of its clients and their accounts of privacy.

    Raises
    ------
    ConfigError
        If it is not there: under another id, the clients would begin second accounts.
    """
    found = str(read_object(directory / CONFIG).get("run_id"))
    if not found.isdecimal():
        raise ConfigError(
            f'resume: {directory / CONFIG} has no "run_id", by which the clients find their states and what they have '
            "spent of their privacy: restore the file from a backup, or start a new run."
        )
    return found


def changed_data(directory: Path, digests: Mapping[str, str]) -> list[str]:
    """Return the names of the data that are not those with which a run began; errors as in ``read_object``.

    Parameters
    ----------
    directory : Path
        The run directory.
    digests : mapping of str to str
        See ``FederatedDataset.digests``. Data that this host or the run's host lacks are left out, as are all data of
        a run of an earlier version of the app.
    """
    began = read_object(directory / CONFIG).get(DATA)
    known = began if isinstance(began, dict) else {}
    return [name for name, digest in digests.items() if known.get(name, digest) != digest]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a ``stats.jsonl``; lines that cannot be read are left out, with a warning a whole file."""
    try:
        lines = read_bytes(path, limits.LINES_BYTES).splitlines()
    except (OSError, ValueError) as error:
        if path.exists():
            logger.warning("%s is left out: %s", path, error)
        return []
    found = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        found += [row] if isinstance(row, dict) else []
    return found


def row_of(rows: Iterable[Mapping[str, Any]], phase: str) -> Mapping[str, Any]:
    """Return the first line of a phase, such as ``data``; empty without one."""
    return next((row for row in rows if row.get("phase") == phase), {})


def sizes_of_clients(rows: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """Return the numbers of training images that the lines of a run's ``stats.jsonl`` have, by client."""
    sizes = row_of(rows, "data").get("data/num_examples")
    counted = enumerate(sizes) if isinstance(sizes, list) else ()
    return {client: size for client, size in counted if isinstance(size, int)}
