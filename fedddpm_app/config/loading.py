"""Turn Flower's flat run config into checked dataclasses."""

import difflib
import tomllib
import types
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedddpm_app.config.checks import check_together
from fedddpm_app.config.errors import ConfigError
from fedddpm_app.config.fields import Scalar
from fedddpm_app.config.groups import Config


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


def default_run_config(app_dir: Path | None = None) -> dict[str, Scalar]:
    """Return ``[tool.flwr.app.config]`` of an app's pyproject.toml, by default of this package's own app."""
    folder = app_dir or packaged_app()
    content = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    return dict(content["tool"]["flwr"]["app"]["config"])


def known_keys() -> list[str]:
    """Return every run-config key, in the order of the groups."""
    return [key for group in GROUPS.values() for key in keys_of(group)]


def load_config(run_config: Mapping[str, Scalar]) -> Config:
    """Check a run config and turn it into dataclasses.

    Parameters
    ----------
    run_config : Mapping[str, bool | int | float | str]
        All keys of ``[tool.flwr.app.config]``, with the overrides applied.

    Raises
    ------
    ConfigError
        For an unknown, missing or invalid key; the message names the first such key, its value and the fix.
    """
    known = known_keys()
    for key in run_config:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            fix = f"did you mean {close[0]}?" if close else "[tool.flwr.app.config] in pyproject.toml lists all keys."
            raise ConfigError(f"{key} = {run_config[key]!r}: there is no such key; {fix}")
    for key in known:
        if key not in run_config:
            raise ConfigError(f"{key} is missing: add it to [tool.flwr.app.config] in pyproject.toml.")
    groups: dict[str, Any] = {name: _load_group(group, run_config) for name, group in GROUPS.items()}
    config = Config(**groups)
    check_together(config)
    return config


def _load_group(group: type, run_config: Mapping[str, Scalar]) -> object:
    names = keys_of(group)
    try:
        loaded: object = group(**{name: run_config[key] for key, name in names.items()})
    except ValidationError as error:
        first = error.errors()[0]
        key = next(key for key, name in names.items() if name == first["loc"][0])
        advice: str | None = group.__pydantic_fields__[names[key]].description  # type: ignore[attr-defined]
        fix = advice or first["msg"].replace("Input should", "it should")
        raise ConfigError(f"{key} = {run_config[key]!r} cannot be used: {fix}.") from None
    return loaded
