"""Folders and files that only this user can read, whatever the umask: runs, caches and states hold private models."""

import contextlib
import functools
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger("fedddpm")  # that of ``progress``, which is above this room
_ROOT = 0
_OTHERS = 0o077


class OwnerError(OSError):
    """A folder belongs to another user, where everybody can make one; the message is one sentence."""

    def __init__(self, path: Path, owner: int) -> None:
        super().__init__(f"{path} belongs to another user (uid {owner}), who could read and change what is in it")
        self.strerror = str(self)


def restrict_umask() -> None:
    """Have this process, from now on, create files and folders for this user only."""
    os.umask(_OTHERS)


@contextlib.contextmanager
def private_umask() -> Iterator[None]:
    """Have the body, and the processes that it starts, create files and folders for this user only."""
    before = os.umask(_OTHERS)
    try:
        yield
    finally:
        os.umask(before)


def make_private(folder: Path) -> None:
    """Create a folder and its missing parents for this user only; one that exists stays as it is."""
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)


def private_folder(folder: Path) -> None:
    """Create a folder as ``make_private`` does, or check the one that exists.

    A folder that others can enter, as earlier versions created them, gives a warning.

    Raises
    ------
    OwnerError
        See ``check_owner``.
    OSError
        When it cannot be created.
    """
    make_private(folder)
    check_owner(folder)
    mode = folder.stat().st_mode
    if mode & _OTHERS:
        _warn(folder, stat.S_IMODE(mode))


def check_owner(folder: Path) -> None:
    """Check the owners of a folder, of the link to it, and of the folders above, if they exist: this user or root.

    Where everybody can make folders, such as in ``/tmp``, another user may have laid a trap: the owner of a folder can
    exchange what is in it. Elsewhere, as in a folder that a container mounts, the user has chosen the place: the log
    names the owner of the folder once.

    Raises
    ------
    OwnerError
        When another user made one of them where everybody can make folders.
    """
    folder = folder.absolute()
    for path in (folder, *folder.parents):
        for look in (path.lstat, path.stat):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                owner = look().st_uid
                if owner in (os.getuid(), _ROOT):
                    continue
                if path.parent.stat().st_mode & stat.S_IWOTH:
                    raise OwnerError(path, owner)
                if path == folder:
                    _warn_of_owner(folder, owner)


@functools.cache
def _warn_of_owner(folder: Path, owner: int) -> None:
    """Warn once in a process."""
    logger.warning("%s belongs to another user (uid %d), who can read and change what is in it", folder, owner)


@functools.cache
def _warn(folder: Path, mode: int) -> None:
    """Warn once in a process."""
    logger.warning(
        "other users of this host may enter %s (mode %04o): make it private by `chmod -R go-rwx`, unless they should",
        folder,
        mode,
    )
