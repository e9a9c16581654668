"""Receives the files of a run directory from a server that is not trusted."""

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from fedddpm_app import limits
from fedddpm_app.disk.durable import partial_of
from fedddpm_app.launch import delivery

# of files that Python imports, and of the pyproject.toml that makes a folder a Flower app; runs write none of them
_CODE = {".py", ".pyc", ".pyd", ".so", ".dll", ".pth", ".toml", ".zip", ".egg"}


class FetchError(RuntimeError):
    """Files did not arrive, or did not arrive unchanged."""


@dataclass
class FileReceiver:
    """Writes the files that ``delivery`` sends.

    It refuses file names that point outside the folder, files that Python or Flower would take for code, and more bytes
    or files than were announced and allowed.

    Attributes
    ----------
    directory : Path
        The folder to write the files to.
    largest_mb : float
        The largest file, in 10^6 bytes.
    num_bytes : int
        Bytes received so far.
    left : dict of str to int
        Files that were not sent, with their sizes.
    is_complete : bool
        Whether all files arrived.
    """

    directory: Path
    largest_mb: float
    num_bytes: int = 0
    left: dict[str, int] = field(default_factory=dict)
    is_complete: bool = False
    _file: BinaryIO | None = None
    _digest: Any = None
    _received: int = 0
    _named: int = 0
    _name: str = ""
    _announced: int = 0
    _written: int = 0
    _error: str = ""

    @property
    def error_suffix(self) -> str:
        """The last error line of the log, as a suffix for a message; empty if there is none."""
        return f": {self._error}" if self._error else ""

    def take(self, line: str) -> None:
        """Process a line of the log."""
        _, found, text = line.partition(f"{delivery.MARK} ")
        if not found:
            self._error = line.strip() if "Error" in line else self._error
            return
        kind, _, rest = text.partition(" ")
        try:
            if kind == "data":
                self._append(base64.b64decode(rest, validate=True))
            else:
                self._handle(kind, json.loads(rest))
        except (binascii.Error, ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
            raise FetchError(f"the delivery cannot be read: {error}; try again.") from error
        except OSError as error:
            raise FetchError(f"{self.directory} cannot be written: {error}.") from error

    def _handle(self, kind: str, about: dict[str, Any]) -> None:
        if kind == "file":
            path = self._path(about["path"])
            self._announce(about["path"], about["bytes"])
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file, self._digest = partial_of(path).open("wb"), hashlib.sha256()
        elif kind == "done" and self._file is not None:
            self._file.close()
            if self._written != self._announced:
                raise FetchError(
                    f"{self._name} did not arrive as it was sent: the server announced {self._announced:,} bytes and "
                    f"sent {self._written:,}; try again."
                )
            if self._digest.hexdigest() != about["sha256"]:
                raise FetchError(f"{about['path']} did not arrive as it was sent; try again.")
            path = self._path(about["path"])
            partial_of(path).replace(path)
            self._file, self._received = None, self._received + 1
        elif kind == "left":
            self._count()
            self.left[str(about["path"])] = int(about["bytes"])
        elif kind == "end":
            self.is_complete = about["files"] == self._received

    def _announce(self, name: str, size: object) -> None:
        """Check the size of the file that comes next, before any of it is written."""
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise ValueError(f"{name} has the size {size!r}")
        if size > self.largest_mb * 1e6:
            raise FetchError(
                f"the server announced {size:,} bytes for {name}, more than --largest-mb = {self.largest_mb:g}: use a "
                "larger limit, or copy the file from the server's host."
            )
        if self.num_bytes + size > limits.DELIVERED_BYTES:
            raise FetchError(
                f"the run directory has more than {limits.DELIVERED_BYTES:,} bytes: use a smaller --largest-mb, or "
                "copy it from the server's host."
            )
        self._count()
        self._name, self._announced, self._written = name, size, 0

    def _count(self) -> None:
        self._named += 1
        if self._named > limits.DELIVERED_FILES:
            raise FetchError(
                f"the run directory has more than {limits.DELIVERED_FILES:,} files: copy it from the server's host."
            )

    def _append(self, chunk: bytes) -> None:
        if self._file is None:
            raise FetchError("the delivery cannot be read: its data belong to no file; try again.")
        self._written += len(chunk)
        if self._written > self._announced:
            raise FetchError(
                f"the server announced {self._announced:,} bytes for {self._name} and sends more, which is refused: "
                "copy the run directory from the server's host."
            )
        self._file.write(chunk)
        self._digest.update(chunk)
        self.num_bytes += len(chunk)

    def _path(self, name: str) -> Path:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts:
            raise FetchError(f"the server sent a file with the name {name}, which is refused.")
        if PurePosixPath(name).suffix.lower() in _CODE:
            raise FetchError(
                f"the server sent {name}, which is refused, because it could be run as code: remove it there."
            )
        return self.directory.joinpath(*parts)
