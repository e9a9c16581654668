"""`fedddpm config`: list and search the keys, or show a run's values."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from fedddpm_app.cli.common import console, find_app, refuse, say
from fedddpm_app.config import ConfigError, Scalar
from fedddpm_app.config.reference import Key, list_keys, search
from fedddpm_app.config.words import advice
from fedddpm_app.recording.reading import run_config_of

_MAX_TYPE = 44  # characters of a type in a table; the values of a long enumeration are in the meaning


def config(words: list[str] | None, used: Path | None, app_dir: Path | None) -> None:
    """Print the keys; ``commands.config`` describes the arguments."""
    keys = list_keys(find_app(app_dir))
    found = search(keys, words or [])
    if not found:
        given = " ".join(words or [])
        refuse(f"config {given}: no key has this in its name or meaning; {advice(given, [key.name for key in keys])}")
    if used is None:
        _print(found, {key.name: key.default for key in found})
        return
    values = _values_of(used)
    changed = [key for key in found if key.name in values and values[key.name] != key.default]
    _print(changed, values)
    for name in sorted(values.keys() - {key.name for key in keys}) if not words else []:
        say(f"# {name} = {_toml(values[name])} is not a key of this version")
    if not changed:
        say("# every value is the default")


def _values_of(run: Path) -> dict[str, Scalar]:
    """Return the run config of a run directory."""
    try:
        return run_config_of(run, f"--used {run}")
    except ConfigError as error:
        return refuse(str(error))


def _print(keys: Sequence[Key], values: Mapping[str, Scalar]) -> None:
    """Print a table on a terminal; elsewhere print lines that are a TOML file for --run-config."""
    for heading in dict.fromkeys(key.heading for key in keys):
        group = [key for key in keys if key.heading == heading]
        if console.is_terminal:
            console.print(_table(heading, group, values))
        else:
            say(f"# --- {heading}")
            for key in group:
                default = "" if values[key.name] == key.default else f" default: {_toml(key.default)};"
                line = f"{key.name} = {_toml(values[key.name])}  #{default} {key.type}; {key.meaning}"
                say(line.rstrip("; "))


def _table(heading: str, keys: Sequence[Key], values: Mapping[str, Scalar]) -> Table:
    table = Table(title=Text(heading), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), expand=True)
    changed = any(values[key.name] != key.default for key in keys)
    table.add_column("key", no_wrap=True)
    for column in ["value", "default"] if changed else ["default"]:
        table.add_column(column, overflow="fold")
    table.add_column("type", overflow="fold", max_width=_MAX_TYPE)
    table.add_column("meaning, unit", overflow="fold")
    for key in keys:
        shown = [values[key.name], key.default] if changed else [key.default]
        table.add_row(*map(Text, [key.name, *map(_toml, shown), key.type, key.meaning]))
    return table


def _toml(value: Scalar) -> str:
    return json.dumps(value, ensure_ascii=False)
