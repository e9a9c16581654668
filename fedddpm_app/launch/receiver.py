"""The receiver of ``delivery``: it writes the files to a folder of its own, and moves them to their place at the end.

The server decides what it sends. So every name, number and size is checked before anything is written, and nothing is
in its place before all has arrived.
"""

import base64
import binascii
import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from fedddpm_app import limits
from fedddpm_app.config import one_line, shown
from fedddpm_app.disk.placing import entered, move_into
from fedddpm_app.launch.delivered_names import DeliveredNames, NameRefusedError
from fedddpm_app.launch.delivery import MARK

_REASONS = {"size": "it is too large", "link": "it is a link, or has several names", "special": "it is no plain file"}
_MAX_BYTES = 1 << 60  # of a file that is only named


class FetchError(RuntimeError):
    """Files did not arrive, or are refused; the message is one sentence."""


class LeftFile(NamedTuple):
    """A file that was not sent: its size in bytes, and the reason as a key of the delivery."""

    num_bytes: int
    why: str

    @property
    def reason(self) -> str:
        """The reason, as a part of a sentence."""
        return _REASONS[self.why]


class _Open(NamedTuple):
    """The file that is arriving."""

    name: PurePosixPath
    size: int
    file: BinaryIO
    digest: Any


class FileReceiver:
    """Writes the files that ``delivery`` sends to a folder.

    Parameters
    ----------
    folder : Path
        An empty folder of this process alone.
    total_mb : float
        The largest size of all files together, in 10^6 bytes.

    Attributes
    ----------
    num_bytes : int
        Bytes received so far.
    left : dict of str to LeftFile
        Files that were not sent.
    is_complete : bool
        Whether all files arrived.
    """

    def __init__(self, folder: Path, total_mb: float = limits.DELIVERY_MB) -> None:
        self.num_bytes = 0
        self.left: dict[str, LeftFile] = {}
        self.is_complete = False
        self._folder = folder
        self._total_mb = total_mb
        self._names = DeliveredNames()
        self._received: list[PurePosixPath] = []
        self._open: _Open | None = None
        self._stated_bytes = self._missing_bytes = 0
        self._error = ""

    @property
    def error_suffix(self) -> str:
        """The last error line of the log, as a suffix for a message; empty if there is none."""
        return f": {self._error}" if self._error else ""

    def take(self, line: str) -> None:
        """Process a line of the log.

        Raises
        ------
        FetchError
            When it is refused, or cannot be written.
        """
        mark, _, text = line.partition(" ")
        if mark != MARK:
            self._error = one_line(line) if "Error" in line else self._error
            return
        kind, _, rest = text.partition(" ")
        try:
            if kind == "data":
                self._append(base64.b64decode(rest, validate=True))
            else:
                self._handle(kind, _object(rest))
        except NameRefusedError as error:
            raise FetchError(str(error)) from error
        except (binascii.Error, ValueError, LookupError, TypeError, RecursionError) as error:
            raise FetchError(f"the delivery cannot be read: {one_line(str(error))}; try again.") from error
        except OSError as error:
            raise FetchError(f"{self._folder} cannot be written: {error}.") from error

    def move_to(self, directory: Path) -> None:
        """Move all files to their places in ``directory``, and through no link there.

        Raises
        ------
        OSError
            When a link or a file is in the way, before anything is moved, or when a file cannot be moved.
        """
        for name in self._received:
            with entered(directory, name):
                pass
        for name in self._received:
            move_into(self._folder / name, directory, name)

    def close(self) -> None:
        """Close the file that is still open."""
        if self._open is not None:
            self._open.file.close()

    def _handle(self, kind: str, about: dict[str, Any]) -> None:
        if kind == "file":
            self._begin(about)
        elif kind == "done":
            self._finish(about)
        elif kind == "left":
            name = self._new_name(about["path"])
            why = about["why"] if about["why"] in _REASONS else "special"
            self.left[str(name)] = LeftFile(_count(about, "bytes", str(name), _MAX_BYTES), why)
        elif kind == "end":
            files = _count(about, "files", "the whole delivery", limits.DELIVERY_FILES)
            self.is_complete = self._open is None and files == len(self._received)

    def _begin(self, about: dict[str, Any]) -> None:
        if self._open is not None:
            raise FetchError(f"{self._open.name} did not arrive as it was sent; try again.")
        name = self._new_name(about["path"])
        size = _count(about, "bytes", str(name), _MAX_BYTES)
        self._stated_bytes += size
        if self._stated_bytes > self._total_mb * 1e6:
            raise FetchError(
                f"the files have more than --total-mb = {self._total_mb:g}: give a larger --total-mb, or a smaller "
                "--largest-mb."
            )
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._open = _Open(name, size, path.open("xb"), hashlib.sha256())
        self._missing_bytes = size

    def _append(self, chunk: bytes) -> None:
        if self._open is None:
            raise FetchError("the delivery cannot be read: its data belong to no file; try again.")
        self._missing_bytes -= len(chunk)
        if self._missing_bytes < 0:
            raise FetchError(f"{self._open.name} has more bytes than the {self._open.size} that were stated.")
        self._open.file.write(chunk)
        self._open.digest.update(chunk)
        self.num_bytes += len(chunk)

    def _finish(self, about: dict[str, Any]) -> None:
        if self._open is None:
            raise FetchError("the delivery cannot be read: an end belongs to no file; try again.")
        self._open.file.close()
        if self._missing_bytes:
            stated = self._open.size
            raise FetchError(f"{self._open.name} has {stated - self._missing_bytes} bytes, not the stated {stated}.")
        if (str(self._open.name), self._open.digest.hexdigest()) != (about["path"], about["sha256"]):
            raise FetchError(f"{self._open.name} did not arrive as it was sent; try again.")
        self._received.append(self._open.name)
        self._open = None

    def _new_name(self, given: object) -> PurePosixPath:
        """Return the checked name of another file, sent or left."""
        if len(self._received) + len(self.left) >= limits.DELIVERY_FILES:
            raise FetchError(f"the server has more than {limits.DELIVERY_FILES} files in the run directory: refused.")
        return self._names.add(given)


def _object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("a line has no object")
    return found


def _count(about: dict[str, Any], key: str, what: str, most: int) -> int:
    """Return a stated number; ``FetchError`` unless it is a whole number from 0 to ``most``."""
    value = about.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise FetchError(f"the server states {key} = {shown(value)} for {what}, which is refused.")
    return value
