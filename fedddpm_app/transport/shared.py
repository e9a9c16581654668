"""Files in memory-backed storage, for processes of one user on one host; a message carries only a file reference.

The server creates a directory with a random name that only its user can enter. Every name is checked against a
pattern, and every file is opened inside that directory without following links, and compared with the size and the
SHA-256 of its reference: a path from a message is never opened. A file loses its name as soon as it is read. When its
content is released, the next reply reuses its storage, so that the kernel need not clear new memory (a third of the
time of writing). The directory is removed at the end of the run; the next run removes the directory of a killed run.
Processes of the same user are trusted not to write into a file that they have sent.
"""

import contextlib
import hashlib
import mmap
import os
import re
import secrets
import stat
import weakref
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from fedddpm_app.disk.owned import OwnedFolder, remove_abandoned
from fedddpm_app.transport.layout import Blob, PayloadError
from fedddpm_app.transport.reference import FileReference

ROOT = Path("/dev/shm")  # noqa: S108 # memory-backed on Linux; a folder in it is made for its owner alone
PREFIX = "fedddpm-"
_DIRECTORY = re.compile(rf"{PREFIX}\w{{8}}")
_FILE = re.compile(r"(down|held|up-\d{1,9})-[0-9a-f]{32}")
_HELD, _FREE = "held-", "free-"
_MOST_FREE = 4
_CHUNK_BYTES = 1 << 20
_MADV_POPULATE_READ = 22  # Linux 5.14 and later: load all pages at once, not one by one during hashing
_REMEMBERED = 64


_verified: dict[FileReference, tuple[int, int]] = {}


class SharedDirectory:
    """The server's directory in memory-backed storage, from ``create`` to ``close``."""

    def __init__(self, folder: OwnedFolder) -> None:
        self.path = folder.path
        self._folder = folder

    @classmethod
    def create(cls) -> "SharedDirectory":
        """Create a directory, after removing the directories of killed runs.

        Raises
        ------
        OSError
            When memory-backed storage is missing or cannot be written.
        """
        remove_abandoned(PREFIX, ROOT)
        return cls(OwnedFolder.create(PREFIX, ROOT))

    def write(self, pieces: Iterable[Blob]) -> FileReference:
        """Write a file for the clients."""
        return write_file(self.path.name, "down", pieces)

    def take(self, reference: FileReference, partition_id: int) -> mmap.mmap:
        """Return the content of a client's file, and remove the file's name.

        Raises
        ------
        PayloadError
            When this client cannot have written the file here, or the file differs from its reference.
        """
        if reference.directory != self.path.name or not reference.name.startswith(f"up-{partition_id}-"):
            raise PayloadError(f"it names another client's file: {reference.directory}/{reference.name}"[:200])
        if not _FILE.fullmatch(reference.name):
            raise PayloadError(f"{reference.name[:100]!r} is not a name of a weights file")
        token = secrets.token_hex(16)
        held = self.path / f"{_HELD}{token}"
        try:
            (self.path / reference.name).rename(held)
            content = map_file(replace(reference, name=held.name))
        except (OSError, PayloadError) as error:
            held.unlink(missing_ok=True)
            raise PayloadError(str(error)) from error
        weakref.finalize(content, _give_back, held, self.path / f"{_FREE}{token}").atexit = False
        return content

    def remove(self, reference: FileReference) -> None:
        """Remove a file that the server wrote."""
        (self.path / reference.name).unlink(missing_ok=True)

    def remove_unread(self, partition_id: int | None = None) -> None:
        """Remove the files of a client, or of all, that were not read: late or refused replies."""
        for path in self.path.glob("up-*" if partition_id is None else f"up-{partition_id}-*"):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the directory."""
        self._folder.close()


def write_file(directory: str, kind: str, pieces: Iterable[Blob]) -> FileReference:
    """Write pieces to a new file with a random name; an incomplete file is removed.

    Raises
    ------
    OSError
        When there is no room.
    """
    name = f"{kind}-{secrets.token_hex(16)}"
    folder, digest, size = _open_directory(directory), hashlib.sha256(), 0
    try:
        file = _open_to_write(name, folder)
        try:
            for piece in pieces:
                content = memoryview(piece).cast("B")
                for start in range(0, len(content), _CHUNK_BYTES):
                    chunk = content[start : start + _CHUNK_BYTES]  # hashed while it is in the CPU cache
                    digest.update(chunk)
                    size += _write_all(file, chunk)
            os.ftruncate(file, size)
        except OSError:
            os.unlink(name, dir_fd=folder)
            raise
        finally:
            os.close(file)
    finally:
        os.close(folder)
    return FileReference(directory, name, size, digest.hexdigest())


def map_file(reference: FileReference) -> mmap.mmap:
    """Map a file into memory, and compare its content with its reference.

    Raises
    ------
    PayloadError
        When the names do not match our patterns, there is no such file, or its size or SHA-256 differs.
    """
    if not _FILE.fullmatch(reference.name):
        raise PayloadError(f"{reference.name[:100]!r} is not a name of a weights file")
    try:
        folder = _open_directory(reference.directory)
        try:
            file = os.open(reference.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise PayloadError(
            f"{reference.directory}/{reference.name} cannot be read on this host ({error.strerror}): if the clients "
            'do not all run on the server\'s host, set transport = "flat"'
        ) from error
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_size != reference.size or reference.size < 1:
            raise PayloadError(f"{reference.name} has {found.st_size} bytes instead of {reference.size}")
        # Private: a client that writes into its weights by mistake changes no other client's weights.
        content = mmap.mmap(file, reference.size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(file)
    with contextlib.suppress(OSError):
        content.madvise(_MADV_POPULATE_READ)
    _check_digest(reference, content, (found.st_ino, found.st_mtime_ns))
    return content


def _check_digest(reference: FileReference, content: mmap.mmap, state: tuple[int, int]) -> None:
    """Compare a file's content with its SHA-256.

    A process does this once for each state of a file, because many clients read the same file.
    """
    if _verified.get(reference) == state:
        return
    if hashlib.sha256(content).hexdigest() != reference.sha256:
        raise PayloadError(f"{reference.name} does not have the SHA-256 of its reference")
    if len(_verified) >= _REMEMBERED:
        _verified.clear()
    _verified[reference] = state


def _open_directory(name: str) -> int:
    """Open a server's directory by its bare name; only this user may have access to it."""
    if not _DIRECTORY.fullmatch(name):
        raise PayloadError(f"{name[:100]!r} is not a name of a server's directory")
    folder = os.open(ROOT / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    found = os.fstat(folder)
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        os.close(folder)
        raise PayloadError(f"{name} does not belong to this user alone")
    return folder


def _open_to_write(name: str, folder: int) -> int:
    """Open a new file; reuse the storage of a released file if there is one."""
    for free in os.listdir(folder):
        if free.startswith(_FREE):
            with contextlib.suppress(FileNotFoundError):  # another client was faster
                os.rename(free, name, src_dir_fd=folder, dst_dir_fd=folder)
                return os.open(name, os.O_WRONLY | os.O_NOFOLLOW, dir_fd=folder)
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)


def _give_back(held: Path, free: Path) -> None:
    """Keep the storage of a released file for the next reply."""
    with contextlib.suppress(OSError):  # at the end of the run the directory may be gone
        if len(list(held.parent.glob(f"{_FREE}*"))) < _MOST_FREE:
            held.rename(free)
        else:
            held.unlink()


def _write_all(file: int, chunk: memoryview) -> int:
    written = 0
    while written < len(chunk):
        written += os.write(file, chunk[written:])
    return written
