"""Moving files into a folder without following a link in it, whoever put the link there."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class LinkError(OSError):
    """There is a link, or a file, where a folder is needed; the message is one sentence with the fix."""


@contextlib.contextmanager
def entered(folder: Path, name: PurePosixPath) -> Iterator[int]:
    """Yield the descriptor of the folder of a file ``name`` below ``folder``; missing folders on the way are created.

    Parameters
    ----------
    folder : Path
        An existing folder.
    name : PurePosixPath
        A relative path without "..".

    Raises
    ------
    LinkError
        When ``folder``, or a folder on the way, is a link or a file.
    """
    with contextlib.ExitStack() as stack:
        here, path = _open(folder, folder, None, stack), folder
        for part in name.parent.parts:
            path /= part
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o700, dir_fd=here)
            here = _open(part, path, here, stack)
        yield here


def move_into(source: Path, folder: Path, name: PurePosixPath) -> None:
    """Move a file to ``name`` below ``folder``, in place of a file or a link of that name; raises as ``entered``."""
    with entered(folder, name) as here:
        os.rename(source, name.name, dst_dir_fd=here)


def _open(name: Path | str, path: Path, parent: int | None, stack: contextlib.ExitStack) -> int:
    try:
        descriptor = os.open(name, _FOLDER, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise LinkError(f"{path} is a link or a file, and nothing is written through it: remove it") from error
        raise
    stack.callback(os.close, descriptor)
    return descriptor
