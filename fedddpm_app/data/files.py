"""The files under a folder: links, hidden files, and folders that cannot be read."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fedddpm_app.config import ConfigError
from fedddpm_app.data.names import normal_form, printable
from fedddpm_app.progress import logger

_OF_THE_SYSTEM = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")
_MAX_LINKS = 1000  # to one folder
_ENDING = re.compile(r"\.[A-Za-z]\w*")  # of a file's name; the folder "v1.0" has none


def find_files(folder: Path) -> Iterator[Path]:
    """Yield the files under a folder in a fixed order, each by every name that it has.

    Links are followed, except a link to a folder above itself. Hidden files, folders that operating systems add, and
    anything that is not a file (a pipe, a device) are skipped. A link to nothing is yielded as a file.

    Raises
    ------
    ConfigError
        When a folder cannot be read, or more than a thousand links lead to one folder.
    """
    links: Counter[Path] = Counter()
    waiting: list[tuple[Path, tuple[Path, ...]]] = [(folder, (Path(os.path.realpath(folder)),))]
    while waiting:
        parent, above = waiting.pop()
        folders: list[tuple[Path, tuple[Path, ...]]] = []
        for entry in _entries(parent):
            kind = _kind(entry)
            if kind == "file":
                yield Path(entry.path)
            if kind != "folder":
                continue
            real = above[-1] / entry.name
            if entry.is_symlink():
                real = Path(os.path.realpath(entry.path))
                if any(each.is_relative_to(real) for each in above):
                    continue
                links[real] += 1
                _check_number(links[real], entry.path)
            folders.append((Path(entry.path), (*above, real)))
        waiting += reversed(folders)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is skipped: it is hidden, or an operating system added it."""
    return name.startswith((".", *_OF_THE_SYSTEM))


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; a path that the system refuses, such as a too long one, is not."""
    try:
        return path.expanduser().is_dir()
    except (OSError, RuntimeError):  # RuntimeError: the home folder of an unknown user
        return False


def sub_folders(folder: Path) -> list[Path]:
    """Return the folders directly in a folder, in the order of their names, without hidden ones."""
    return [Path(entry.path) for entry in _entries(folder) if _kind(entry) == "folder"]


def check_links(files: list[Path]) -> None:
    """Check links that lead nowhere: a link whose name has no ending, like a folder's, is an error, others a warning.

    Raises
    ------
    ConfigError
        When such a link may be a folder: a class or a split would be missing.
    """
    for path in files:
        if not path.is_symlink() or _exists(path):
            continue
        link = f"{printable(path)} is a link to {printable(path.readlink())}, which cannot be reached"
        if not _ENDING.fullmatch(path.suffix):
            raise ConfigError(f"{link}: restore it (is its disk mounted?), or remove the link.")
        logger.warning("%s: it is left out.", link)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds, in the order of the names' normal forms, without hidden files and folders."""
    try:
        with os.scandir(folder) as found:
            entries = [entry for entry in found if not is_hidden(entry.name)]
    except OSError as error:
        raise ConfigError(
            f"{printable(folder)} cannot be read ({error.strerror}): change its permissions, or move it away."
        ) from error
    return sorted(entries, key=lambda entry: (normal_form(entry.name), entry.name))


def _kind(entry: os.DirEntry[str]) -> str:
    """Return ``folder``, ``file`` (also for a link that leads nowhere) or ``other``, such as a pipe."""
    try:
        if entry.is_dir() or entry.is_file():
            return "folder" if entry.is_dir() else "file"
        entry.stat()
    except OSError:
        return "file"
    return "other"


def _check_number(links: int, path: str) -> None:
    if links > _MAX_LINKS:
        raise ConfigError(
            f"{printable(path)} is one of more than {_MAX_LINKS} ways to one folder, because links lead to folders "
            "with links: remove some of them."
        )


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except OSError:
        return False
    return True
