"""All keys with their type, default and meaning, from pyproject's comments and the fields of the groups."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from fedddpm_app.config.fields import LARGEST_INT, Scalar
from fedddpm_app.config.loading import GROUPS, default_run_config, keys_of, pyproject_text
from fedddpm_app.config.words import SHORT_NAMES, plain

_SECTION = "[tool.flwr.app.config]"
_HEADING = "# --- "
_SYMBOLS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@dataclass(frozen=True)
class Key:
    """A key of the run config.

    Attributes
    ----------
    name, heading : str
        The key, and the heading of its group in pyproject.toml.
    type : str
        The values that it takes.
    default : bool, int, float or str
        The app's value.
    meaning : str
        The comment in pyproject.toml, with the unit of a quantity.
    """

    name: str
    heading: str
    type: str
    default: Scalar
    meaning: str


def list_keys(app_dir: Path | None = None) -> list[Key]:
    """Return the keys of an app (by default of this package) in the order of its pyproject.toml."""
    defaults, fields = default_run_config(app_dir), _annotations()
    keys, heading = [], ""
    for line in pyproject_text(app_dir).partition(_SECTION)[2].partition("\n[")[0].splitlines():
        if line.startswith(_HEADING):
            heading = line.removeprefix(_HEADING).strip()
        name = line.partition("=")[0].strip()
        if name in fields and name in defaults:
            group, field = fields[name]
            meaning = _comment(line)
            keys.append(Key(name, heading, _describe(group, field, meaning), defaults[name], meaning))
    return keys


def choices(key: str) -> list[str]:
    """Return the values of an enumeration, as they are typed; empty for any other key."""
    found = _annotations().get(key)
    if found is None:
        return []
    annotation = _field(*found).annotation
    return ["true", "false"] if annotation is bool else [str(value) for value in get_args(annotation)]


def search(keys: Iterable[Key], words: Iterable[str]) -> list[Key]:
    """Return the keys with all words in their name, heading or meaning, or that a short name means."""
    wanted = [plain(word.partition("=")[0]) for word in " ".join(words).split()]
    return [key for key in keys if all(_matches(key, word) for word in wanted)]


def _matches(key: Key, word: str) -> bool:
    return word in f"{key.name} {key.heading} {key.meaning}".lower() or SHORT_NAMES.get(word) == key.name


def _annotations() -> dict[str, tuple[type, str]]:
    return {key: (group, name) for group in GROUPS.values() for key, name in keys_of(group).items()}


def _field(group: type, name: str) -> Any:
    return group.__pydantic_fields__[name]  # type: ignore[attr-defined]


def _describe(group: type, name: str, meaning: str) -> str:
    """Return the values of a field in words: its type with its limits, or its choices if ``meaning`` lacks one."""
    field = _field(group, name)
    if not isinstance(field.annotation, type):
        values = [str(value) for value in get_args(field.annotation)]
        return "choice" if all(value in meaning for value in values) else " | ".join(values)
    kind = {str: "text", bool: "true | false", int: "integer", float: "number"}[field.annotation]
    limits = [
        f"{symbol} {getattr(rule, name)}"
        for rule in field.metadata
        for name, symbol in _SYMBOLS.items()
        if getattr(rule, name, None) not in (None, LARGEST_INT)
    ]
    return " ".join([kind, *limits])


def _comment(line: str) -> str:
    """Return the comment of a line ``key = value  # comment``; a "#" in a quoted value starts none."""
    value = line.partition("=")[2].strip()
    rest = value[1:].partition('"')[2] if value.startswith('"') else value
    return rest.partition("#")[2].strip()
