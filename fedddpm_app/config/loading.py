"""Turn Flower's flat run config into checked dataclasses."""

import re
import tomllib
import types
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from fedddpm_app.config.checks import problems_together
from fedddpm_app.config.errors import ConfigError, shown
from fedddpm_app.config.fields import Kind, Scalar
from fedddpm_app.config.groups import Config, PartialGroup
from fedddpm_app.config.purposes import PLACES, RESUMING
from fedddpm_app.config.words import advice

_CONTROL = "it has a control character, such as a line break; leave it out"
_FIXES = {"bool_type": "it should be true or false", "string_type": "it should be a text, in double quotes"}
_NUMBER = re.compile(r"[+-]?[0-9.]+([eE][+-]?[0-9]+)?")
_OF_THE_HOST = (*PLACES, *RESUMING, "device", "inception-weights", "tracker")


def keys_of(group: type) -> dict[str, str]:
    """Map each run-config key of a group to its field's name."""
    prefix: str = group.PREFIX  # type: ignore[attr-defined]
    return {prefix + f.name.replace("_", "-"): f.name for f in fields(group)}


GROUPS: Mapping[str, type] = types.MappingProxyType(
    {f.name: f.type for f in fields(Config) if isinstance(f.type, type)}
)


def packaged_app() -> Path:
    """Return the folder with this package's own app: in a wheel it is inside the package, else it is the checkout."""
    package = Path(__file__).resolve().parent.parent
    return next(folder for folder in (package / "app_files", package.parent) if (folder / "pyproject.toml").is_file())


def pyproject_text(app_dir: Path | None = None) -> str:
    """Return an app's pyproject.toml, by default that of this package's own app."""
    return ((app_dir or packaged_app()) / "pyproject.toml").read_text(encoding="utf-8")


def default_run_config(app_dir: Path | None = None) -> dict[str, Scalar]:
    """Return ``[tool.flwr.app.config]`` of an app's pyproject.toml, by default of this package's own app."""
    return dict(tomllib.loads(pyproject_text(app_dir))["tool"]["flwr"]["app"]["config"])


def changed_keys(run_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a run whose values differ from the app's, without those that only say where it was run."""
    defaults = default_run_config()
    changed = {key: value for key, value in run_config.items() if key not in defaults or value != defaults[key]}
    return {key: value for key, value in changed.items() if key not in _OF_THE_HOST}


def known_keys() -> list[str]:
    """Return every run-config key, in the order of the groups."""
    return [key for group in GROUPS.values() for key in keys_of(group)]


def kinds_of_keys() -> dict[str, Kind]:
    """Return what each run-config key takes: a text, a number, or true and false."""
    return {key: _kind(group, name) for group in GROUPS.values() for key, name in keys_of(group).items()}


def load_config(run_config: Mapping[str, Scalar], problems: Sequence[str] = ()) -> Config:
    """Check a run config and turn it into dataclasses.

    Parameters
    ----------
    run_config : Mapping[str, bool | int | float | str]
        All keys of ``[tool.flwr.app.config]``, with the overrides applied.
    problems : sequence of str
        Problems that were found before, which the error lists too.

    Raises
    ------
    ConfigError
        For unknown, missing or invalid keys, and values that do not fit together; the message has a line for each
        problem, with the key, its value and the fix.
    """
    known = known_keys()
    found = [*problems]
    found += [
        f"{key} = {shown(run_config[key])}: there is no such key; {advice(key, known)}"
        for key in run_config
        if key not in known
    ]
    missing = [key for key in known if key not in run_config]
    found += [f"{key} is missing: add it to [tool.flwr.app.config] in pyproject.toml." for key in missing]
    groups: dict[str, Any] = {}
    for name, group in GROUPS.items():
        groups[name], invalid = load_group(group, run_config)
        found += invalid
    config = Config(**groups)
    found += problems_together(config)
    if found:
        raise ConfigError("\n".join(found))
    return config


def load_saved(saved: Mapping[str, Any], overrides: Mapping[str, Scalar] = types.MappingProxyType({})) -> Config:
    """Check the run config that a run has saved, maybe by another version: its keys that are known, and overrides."""
    known = {key: value for key, value in saved.items() if key in known_keys()}
    return load_config(default_run_config() | known | dict(overrides))


def load_group(group: type, run_config: Mapping[str, Scalar]) -> tuple[object, list[str]]:
    """Return a group of keys and the problems with its values; with problems, the group has only the valid values."""
    names = keys_of(group)
    given = {name: run_config[key] for key, name in names.items() if key in run_config}
    problems = {key: _CONTROL for key, name in names.items() if _has_control_character(given.get(name))}
    try:
        loaded: object = group(**given)
    except ValidationError as error:
        keys = {name: key for key, name in names.items()}
        for each in error.errors():
            name = str(each["loc"][0])
            if name in given:
                problems.setdefault(keys[name], _fix(group, name, each["type"], each["msg"], given[name]))
    else:
        if not problems:
            return loaded, []
    valid = {name: value for name, value in given.items() if all(names[key] != name for key in problems)}
    sentences = [f"{key} = {shown(run_config[key])} cannot be used: {fix}." for key, fix in problems.items()]
    return PartialGroup(group, valid), sentences


def _fix(group: type, name: str, error_type: str, message: str, value: Scalar) -> str:
    """Return the fix of an invalid value, as the end of a sentence."""
    if isinstance(value, str) and _kind(group, name) == "number" and _NUMBER.fullmatch(value):
        return f"{message.replace('Input should', 'it should')}, without quotes"
    advice: str | None = group.__pydantic_fields__[name].description  # type: ignore[attr-defined]
    return advice or _FIXES.get(error_type) or message.replace("Input should", "it should")


def _kind(group: type, name: str) -> Kind:
    """Return what a field takes: its annotation is a type, or a literal of its values."""
    annotation = group.__pydantic_fields__[name].annotation  # type: ignore[attr-defined]
    types_ = {annotation} if isinstance(annotation, type) else {type(value) for value in get_args(annotation)}
    return "text" if types_ == {str} else "flag" if types_ == {bool} else "number"


def _has_control_character(value: Scalar | None) -> bool:
    return isinstance(value, str) and any(unicodedata.category(character) == "Cc" for character in value)
