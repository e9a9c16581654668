"""Ownership by a lock: a folder whose lock nobody holds belongs to a process that has ended.

The kernel releases a lock when its process ends, however that happens. A lock therefore needs no process id, which
another process may have by now, and no time limit.
"""

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

LOCK = "owner.lock"
_RANDOM = re.compile(r"\w{8}")  # of ``tempfile.mkdtemp``
_UNFINISHED_SECONDS = 60.0  # a folder that was not given its name by then belongs to a killed process


class OwnerLock:
    """An exclusive lock on a file, which the kernel releases at the latest at the end of this process.

    Parameters
    ----------
    path : Path
        The file; it is created if needed, and stays.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None

    def acquire(self) -> bool:
        """Take the lock if nobody holds it, and return whether this object holds it now.

        Raises
        ------
        OSError
            When the file cannot be opened, or the file system has no locks.
        """
        file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if isinstance(error, BlockingIOError):
                return False
            raise
        if os.fstat(file.fileno()).st_nlink == 0:  # its owner removed it after this object had opened it
            file.close()
            return False
        self._file = file
        return True

    def release(self, *, remove: bool = False) -> None:
        """Release the lock, and before that remove its file if wanted."""
        if self._file is not None:
            file, self._file = self._file, None
            with file:
                if remove:
                    self.path.unlink(missing_ok=True)


class OwnedFolder:
    """A temporary folder of this process, which only this user can enter; a context manager, which removes it.

    Parameters
    ----------
    path : Path
        The folder.
    lock : OwnerLock
        Its lock, which is held.
    """

    def __init__(self, path: Path, lock: OwnerLock) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(cls, prefix: str, parent: Path | None = None) -> "OwnedFolder":
        """Create a folder ``prefix`` + 8 random characters; it has its lock before it has its name.

        Parameters
        ----------
        prefix : str
            The first part of the name.
        parent : Path, optional
            By default the folder for temporary files.

        Raises
        ------
        OSError
            When the folder cannot be created.
        """
        work = Path(tempfile.mkdtemp(prefix=f".{prefix}", dir=parent))
        lock = OwnerLock(work / LOCK)
        with contextlib.suppress(OSError):  # no locks on this file system: then nobody takes the folder for abandoned
            lock.acquire()
        return cls(work.rename(work.with_name(work.name[1:])), lock)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()


def abandoned(prefix: str, parent: Path | None = None) -> list[Path]:
    """Return the folders of this user that ``OwnedFolder`` created and whose owners have ended."""
    found = []
    for path in sorted((parent or Path(tempfile.gettempdir())).glob(f"*{prefix}*")):
        name = path.name.removeprefix(".")
        with contextlib.suppress(OSError):
            about = path.lstat()
            ours = stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid()
            if not ours or not name.startswith(prefix) or not _RANDOM.fullmatch(name.removeprefix(prefix)):
                continue
            named = not path.name.startswith(".") and (path / LOCK).exists()
            unfinished = path.name.startswith(".") and time.time() - about.st_mtime > _UNFINISHED_SECONDS
            if (named or unfinished) and not is_held(path / LOCK):
                found.append(path)
    return found


def is_held(path: Path) -> bool:
    """Return whether a process holds a lock; it may be on a file system that is mounted read-only.

    Raises
    ------
    OSError
        When the file cannot be opened, or the file system has no locks.
    """
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb")
    except FileNotFoundError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look do not see each other
        except BlockingIOError:
            return True
        return False


@contextlib.contextmanager
def taken_over(folder: Path) -> Iterator[bool]:
    """Hold an abandoned folder's lock in the body, and yield whether that is so; of two cleaners, one gets it."""
    lock, ours = OwnerLock(folder / LOCK), False
    with contextlib.suppress(FileNotFoundError):  # another cleaner was faster
        ours = lock.acquire()
    try:
        yield ours
    finally:
        lock.release()


def remove_abandoned(prefix: str, parent: Path | None = None) -> None:
    """Remove the folders of ``abandoned``."""
    for path in abandoned(prefix, parent):
        with contextlib.suppress(OSError), taken_over(path) as ours:
            if ours:
                shutil.rmtree(path, ignore_errors=True)
