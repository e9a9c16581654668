"""The folder of a new run: its name, and the check that no other run owns it."""

import itertools
import time
import unicodedata
from pathlib import Path

from fedddpm_app.config import Config, ConfigError
from fedddpm_app.disk.private import check_owner, make_private, private_folder
from fedddpm_app.recording.layout import CONFIG, TRACKING


def check_is_new(directory: Path) -> None:
    """Raise ``ConfigError`` if a folder holds a run."""
    try:
        taken = (directory / CONFIG).exists()
    except OSError as error:
        raise _cannot_be_made(directory, error.strerror) from error
    if taken:
        raise ConfigError(
            f'run-name = "{directory.name}": {directory} holds a run already; use another run-name or remove it.'
        )


def output_folder(config: Config, base: Path) -> Path:
    """Return the absolute parent folder of new runs; a relative ``output-dir`` is relative to ``base``."""
    given = config.run.output_dir
    try:
        return (base / Path(given).expanduser()).resolve()
    except RuntimeError as error:
        raise ConfigError(f'output-dir = "{given}" cannot be used: {error} Give an absolute path.') from error


def run_directory(config: Config, base: Path) -> Path:
    """Return the absolute folder of a new run; a relative ``output-dir`` is relative to ``base``.

    Without a ``run-name`` from the user, the folder gets an unused name and is created at once.

    Raises
    ------
    ConfigError
        When the folder holds a run or cannot be created.
    """
    parent = output_folder(config, base)
    if config.run.run_name:
        check_is_new(parent / config.run.run_name)
        return parent / config.run.run_name
    name = f"{_slug(config.run.algorithm)}-{_data_name(config.data.dataset)}-{time.strftime('%Y%m%d-%H%M%S')}"
    for suffix in itertools.count(1):
        directory = parent / (name if suffix == 1 else f"{name}-{suffix}")
        if make_directory(directory):
            return directory
    raise AssertionError("itertools.count ends")


def make_directory(directory: Path) -> bool:
    """Create a folder that only this user can enter, and return whether it is new; refuse that of another user."""
    try:
        check_owner(directory)
        make_private(directory.parent)
        directory.mkdir(mode=0o700)
    except FileExistsError:
        return _check(directory)
    except OSError as error:
        raise _cannot_be_made(directory, error.strerror) from error
    return True


def check_has_no_links(directory: Path) -> None:
    """Raise ``ConfigError`` if a run directory has links: a run writes to its files, and would write to others.

    Those that a library made among the trackers' files are removed with these files, before anything is written there.
    """
    of_trackers = directory / TRACKING
    found = (path for path in directory.rglob("*") if path.is_symlink() and of_trackers not in path.parents)
    link = next(found, None)
    if link is not None:
        raise ConfigError(f"resume: {link} is a link, and nothing is written through it: put what it leads to there.")


def _check(directory: Path) -> bool:
    """Return False for a folder that a run may use."""
    if not directory.is_dir():
        raise _cannot_be_made(directory, "a file has this name")
    try:
        private_folder(directory)
    except OSError as error:
        raise _cannot_be_made(directory, error.strerror) from error
    return False


def _cannot_be_made(directory: Path, reason: str | None) -> ConfigError:
    return ConfigError(f"output-dir: {directory} cannot be made ({reason}); give a writable folder.")


def _data_name(dataset: str) -> str:
    """Return a name for the data in the names of files: the last name of a folder's path, or the whole id."""
    folder = dataset.removeprefix("path:")
    return _slug(dataset if folder == dataset else Path(folder).absolute().name) or "data"


def _slug(name: str) -> str:
    """Return a name with letters, digits and "-" only, of at most 40 characters."""
    letters = "".join(c if c.isalnum() else "-" for c in unicodedata.normalize("NFC", name))
    return "-".join(part for part in letters.split("-") if part)[-40:].strip("-")
