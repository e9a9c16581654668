"""TOML files of overrides: find the path in a text, read the file, say what is wrong with it."""

import re
import tomllib
from pathlib import Path
from typing import Any

from fedddpm_app.config.fields import Scalar

_END_OF_PATH = re.compile(r"\.toml(?=[\s,;]|$)")
_BITS = 63
_LINE = re.compile(r"at line (\d+)")


def find_file(text: str) -> tuple[str, str]:
    """Split a text into the path of a TOML file and the pairs behind it; without a file, the path is empty.

    A path may hold spaces, quotes, "=" and "#": the shortest beginning that is a file counts. A text that only looks
    like a path is one too, so that the message is about a file.
    """
    stripped = text.strip(" \t\r\n\ufeff")
    ends = [found.end() for found in _END_OF_PATH.finditer(stripped)]
    for end in ends:
        if _exists(stripped[:end]):
            return stripped[:end], stripped[end:]
    key, has_pair, _ = stripped.partition("=")
    if ends and not has_pair:
        return stripped[: ends[-1]], stripped[ends[-1] :]
    if ends and (ends[0] <= len(key) or "/" in key):
        return stripped[: ends[0]], stripped[ends[0] :]
    return "", text


def read_table(option: str, path: str, wanted: str) -> tuple[dict[str, Any], list[str]]:
    """Return the content of a TOML file, and the problem with it, whose fix is to give what is ``wanted``."""
    try:
        content = Path(path).expanduser().read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        return {}, [f"{option} {path}: the file is not in UTF-8; save it as UTF-8."]
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return {}, [f"{option} {path}: the file cannot be read ({reason}); give {wanted}."]
    try:
        table = tomllib.loads(content)
    except (ValueError, RecursionError) as error:
        return {}, [f"{option} {path} cannot be read: {_of_line(error, content)}."]
    large = _largest_number(table)
    if large.bit_length() > _BITS:
        return {}, [f"{option} {path} has a number of {large.bit_length():,} bits: write one of at most {_BITS}."]
    return table, []


def read_file(option: str, path: str) -> tuple[dict[str, Scalar], list[str]]:
    """Return the values of a TOML file with one value per key, and the problems with it."""
    table, problems = read_table(option, path, "a TOML file, or pairs 'key=value'")
    values: dict[str, Scalar] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            problems.append(f"{option} {path}: [{key}] is a table; write the keys without a heading above them.")
        elif isinstance(value, bool | int | float | str):
            values[key] = value
        else:
            problems.append(
                f"{option} {path}: {key} = {value} is not a number, a text, true or false; write one of these."
            )
    return values, problems


def _largest_number(value: Any) -> int:
    """Return the largest whole number in a table; Python writes none of more than 4,300 digits."""
    if isinstance(value, dict | list):
        return max(map(_largest_number, value.values() if isinstance(value, dict) else value), default=0)
    return abs(value) if isinstance(value, int) else 0


def _of_line(error: Exception, content: str) -> str:
    """Return what is wrong, with the line if the error names it, and the fix."""
    found, lines = _LINE.search(str(error)), content.splitlines()
    number = int(found.group(1)) if found else len(lines) + 1
    line = f": {lines[number - 1].strip()[:200]}" if number <= len(lines) else ""
    return f"{error}{line}; a text needs double quotes, true and false are lower case, and a key comes once"


def _exists(path: str) -> bool:
    try:
        return Path(path).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):
        return False
