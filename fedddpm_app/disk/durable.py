"""Files that are complete or absent, whenever their process or the machine fails."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path that the body writes a file to; then flush it to the disk and give it the name ``path``.

    If the body raises, or the file cannot be flushed, it is removed, and a file that had the name before stays.
    """
    with unfinished(path) as work:
        yield work
        publish(work, path)


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Yield the path of a file that the body writes, and names by ``publish``; otherwise it is removed in the end."""
    work = partial_of(path)
    try:
        yield work
    finally:
        work.unlink(missing_ok=True)


def partial_of(path: Path) -> Path:
    """Return the name of an unfinished file or folder, which names its process: others can remove it after its end."""
    return path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")


def publish(work: Path, path: Path) -> None:
    """Flush a file or a folder with its files to the disk, and rename it to ``path``."""
    flush_all(work)
    work.replace(path)
    flush(path.parent)


def flush_all(path: Path) -> None:
    """Flush a file, or a folder and all that is in it, to the disk."""
    for item in [*path.rglob("*"), path] if path.is_dir() else [path]:
        flush(item)


def flush(path: Path) -> None:
    """Flush a file or a folder to the disk, so that a failure of the machine does not lose it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
