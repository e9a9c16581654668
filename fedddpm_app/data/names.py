"""The names of classes and files: which ones are equal, and their order."""

import re
import unicodedata
from collections.abc import Iterable


def normal_form(name: str) -> str:
    """Return the form in which names are compared: NFC, because one name may be stored in two Unicode forms."""
    return unicodedata.normalize("NFC", name)


def in_order(names: Iterable[str]) -> list[str]:
    """Return class names in the order of their labels: by number if all of them are whole numbers, else by alphabet."""
    ordered = sorted(names)
    return sorted(ordered, key=int) if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in ordered) else ordered
