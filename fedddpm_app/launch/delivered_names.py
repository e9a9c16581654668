"""The names of delivered files: only names that a run directory has, and that are different files on every machine."""

import os
import unicodedata
from pathlib import PurePosixPath

from fedddpm_app import limits
from fedddpm_app.config import shown
from fedddpm_app.launch.delivery import LOG, WORKING_FOLDERS

_LONGEST_PART = 255  # bytes, of every usual file system
_SPECIAL = ("", ".", "..")
# of files that Python imports, of the pyproject.toml that makes a folder a Flower app, and of scripts; runs write none
_CODE = {
    *(".py", ".pyc", ".pyw", ".pyz", ".pyd", ".pth", ".so", ".dll", ".dylib", ".zip", ".egg", ".whl", ".ipynb"),
    *(".toml", ".cfg", ".ini", ".sh", ".bat", ".ps1"),
    *(".html", ".htm", ".xhtml", ".mht", ".mhtml", ".svg", ".js", ".css"),  # of pages, whose scripts a browser runs
}
_SCRIPTS = {"makefile", "gnumakefile", "justfile"}  # that a program finds by their names


class NameRefusedError(ValueError):
    """A name of a file that is not written; the message is one sentence."""


class DeliveredNames:
    """The names in one delivery; each is checked alone, and against the names before it."""

    def __init__(self) -> None:
        self._spellings: dict[tuple[str, ...], tuple[tuple[str, ...], bool]] = {}

    def add(self, name: object) -> PurePosixPath:
        """Return the path of a new file, relative to the run directory.

        Raises
        ------
        NameRefusedError
            When the name is not that of a file of a run, or is another name's on a machine that does not distinguish
            upper and lower case.
        """
        check_name(name)
        parts = tuple(str(name).split("/"))
        for count in range(1, len(parts) + 1):
            is_file = count == len(parts)
            key = tuple(unicodedata.normalize("NFC", part).casefold() for part in parts[:count])
            before = self._spellings.get(key)
            if before is not None and (is_file or before != (parts[:count], False)):
                raise _refused(name, f"{shown('/'.join(before[0]))} came before, and is the same name on some machines")
            self._spellings[key] = parts[:count], is_file
        return PurePosixPath(*parts)


def check_name(name: object) -> None:
    """Raise ``NameRefusedError`` for a name that no file of a run directory has.

    Hidden files are among them: a program that the user starts in the folder, such as git, could obey a hidden one.
    """
    if not isinstance(name, str) or len(name) > limits.DELIVERY_NAME or not name.isprintable():
        raise _refused(name, f"it must be a text of at most {limits.DELIVERY_NAME} printable characters")
    parts = name.split("/")
    if any(part in _SPECIAL for part in parts) or len(parts) > limits.DELIVERY_DEPTH:
        raise _refused(name, f"it must be a path in the folder, of at most {limits.DELIVERY_DEPTH} parts")
    if any(part.startswith(".") or len(os.fsencode(part)) > _LONGEST_PART for part in parts):
        raise _refused(name, f"its parts must not be hidden or longer than {_LONGEST_PART} bytes")
    if _CODE.intersection(PurePosixPath(name.casefold()).suffixes) or parts[-1].casefold() in _SCRIPTS:
        raise _refused(name, "it could be run as code: remove it there")
    if parts[0].casefold() in WORKING_FOLDERS or name.casefold() == LOG:
        raise _refused(name, "it is a working file of the server, or a file that this machine writes")


def _refused(name: object, reason: str) -> NameRefusedError:
    return NameRefusedError(f"the server sent a file with the name {shown(name)}, which is refused: {reason}.")
