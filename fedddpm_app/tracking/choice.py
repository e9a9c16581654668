"""The choice of trackers by the key ``tracker``, and the start of a run's tracking."""

import functools
import importlib
import re
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from fedddpm_app.config import Config, ConfigError, Scalar, without_paths
from fedddpm_app.config.tracking import AUTO
from fedddpm_app.disk.private import make_private
from fedddpm_app.progress import logger
from fedddpm_app.recording.layout import TRACKING
from fedddpm_app.tracking.pictures import PictureList
from fedddpm_app.tracking.sink import TrackingSink
from fedddpm_app.tracking.tracker import TrackedRun, Tracker

_DEFAULT = "tensorboard"
_IDENTITY, _FORM = "identity", re.compile(r"[0-9a-f]{16}")


def chosen_trackers(config: Config) -> tuple[str, ...]:
    """Return the names of a run's trackers; ``auto`` is TensorBoard where it is installed.

    Raises
    ------
    ConfigError
        When the key names a library that is not installed.
    """
    if config.tracking.tracker == AUTO:
        return (_DEFAULT,) if _is_installed(_DEFAULT) else ()
    for name in config.tracking.named:
        if not _is_installed(name):
            raise ConfigError(
                f'tracker = "{config.tracking.tracker}": {name} is not installed where the server runs; install it by '
                f'`pip install "fedddpm-app[{name}]"`, or use tracker = "none".'
            )
    return config.tracking.named


def _is_installed(name: str) -> bool:
    """Return whether there is a module; a folder of this name in the current one, as some trackers write, is none."""
    found = find_spec(name)
    return found is not None and found.origin is not None


def start_tracking(
    config: Config, run_config: Mapping[str, Scalar], directory: Path, lines: Sequence[dict[str, object]]
) -> TrackingSink | None:
    """Start the trackers of a run; None without one.

    Parameters
    ----------
    config : Config
        The run's config; ``run_config`` is the same with all keys.
    directory : Path
        The run directory; its folder ``tracking`` holds the trackers' files.
    lines : sequence of dict
        The lines of ``stats.jsonl`` that a resumed run keeps: trackers get them again, in place of what they have.
    """
    names, folder = chosen_trackers(config), directory / TRACKING
    if not names:
        return None
    try:
        identity = _identity(folder)
    except OSError as error:
        logger.warning('tracker = "%s": %s cannot be written: %s', config.tracking.tracker, folder, error.strerror)
        return None
    about = {key: without_paths(value) if isinstance(value, str) else value for key, value in run_config.items()}
    openers: dict[str, Callable[[], Tracker]] = {
        name: functools.partial(_open, name, TrackedRun(directory.name, identity, folder / name, about))
        for name in names
    }
    sink = TrackingSink(openers, PictureList(directory, folder), config.tracking.track_client_images)
    sink.replay([*lines])
    return sink


def _open(name: str, run: TrackedRun) -> Tracker:
    """Return a tracker with an empty folder."""
    shutil.rmtree(run.folder, ignore_errors=True)
    make_private(run.folder)
    tracker: Tracker = importlib.import_module(f"fedddpm_app.tracking.{name}").open_tracker(run)
    return tracker


def _identity(folder: Path) -> str:
    """Return the identity of a run's trackers, which the folder keeps for a resumed run."""
    make_private(folder)
    path = folder / _IDENTITY
    try:
        found = path.read_text(encoding="ascii")
    except (OSError, ValueError):
        found = ""
    if not _FORM.fullmatch(found):
        found = secrets.token_hex(8)
        path.write_text(found, encoding="ascii")
    return found
