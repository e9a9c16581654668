"""The names of classes and files: which ones are equal, their order, and how they are shown."""

import re
import unicodedata
from collections.abc import Iterable

_CONTROL = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories: control characters, surrogates, line and paragraph ends


def normal_form(name: str) -> str:
    """Return the form in which names are compared, Unicode's NFC: macOS and Linux may store one name in two forms."""
    return unicodedata.normalize("NFC", name)


def in_order(names: Iterable[str]) -> list[str]:
    """Return class names in the order of their labels: by alphabet, and numbers in them by value (2 before 10)."""
    ordered = sorted(names)
    if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in ordered):
        return sorted(ordered, key=int)
    return sorted(ordered, key=_parts)


def _parts(name: str) -> list[tuple[int, str]]:
    """Return the texts of a name, and the numbers between them with their lengths, by which they compare by value."""
    parts = [part.lstrip("0") if k % 2 else part for k, part in enumerate(re.split("([0-9]+)", name))]
    return [(len(part) if k % 2 else 0, part) for k, part in enumerate(parts)]


def printable(name: object) -> str:
    r"""Return a file's name or path in normal form, as text that every terminal, table and JSON file can hold.

    Control characters, and bytes that are not UTF-8 (surrogates in Python), are escaped, as in ``Mu\xf1oz``.
    """
    text = normal_form(str(name))
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(char) if unicodedata.category(char) in _CONTROL else char for char in text)


def _escape(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte of a name that is not UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()
