"""Helpers of all commands: find the app, read overrides, print messages, refuse bad input."""

import io
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Never

import typer
from rich.console import Console
from rich.text import Text

from fedddpm_app.algorithms import REGISTRY, unknown_algorithm
from fedddpm_app.config import (
    Config,
    ConfigError,
    Scalar,
    default_run_config,
    kinds_of_keys,
    load_config,
    packaged_app,
    plain,
    read_overrides,
)
from fedddpm_app.config.auto import auto_keys

BAD_INPUT = 2
FAILED = 1
RUN_CONFIG, FEDERATION_CONFIG = "--run-config", "--federation-config"
for _stream in (sys.stdout, sys.stderr):
    if isinstance(_stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks is escaped, not an error
        _stream.reconfigure(errors="backslashreplace")


class PlainConsole(Console):
    """A console that prints every text as it is: without markup, and without control characters of others."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text, also that of a table's cell, as rich shows it."""
        lines = "\n".join(map(plain, text.split("\n")))
        return super().render_str(lines, **{**options, "markup": False, "highlight": False, "emoji": False})


console = PlainConsole()


def say(sentence: str) -> None:
    """Print a sentence on one line."""
    console.print(sentence, soft_wrap=True)


def refuse(sentence: str) -> Never:
    """Print a sentence, or a line for each problem, on standard error and exit with code 2."""
    PlainConsole(stderr=True, soft_wrap=True).print(sentence)
    raise typer.Exit(BAD_INPUT)


def find_app(app_dir: Path | None, run: str | Path = "") -> Path:
    """Return the app's folder: ``app_dir``, or else the current folder, or else that of this package's own app.

    The current folder is not taken if it lies in the run directory ``run``: a run is data, not an app.
    """
    try:
        here = Path.cwd()
    except OSError:
        return refuse("The current folder was deleted: change to a folder that exists.")
    is_run = bool(run) and here.resolve().is_relative_to(Path(run).expanduser().resolve())
    for folder in [app_dir] if app_dir else [*([] if is_run else [here]), packaged_app()]:
        try:
            if "algorithm" in default_run_config(folder):
                return folder.resolve()
        except (OSError, LookupError, ValueError):
            continue  # without a readable pyproject.toml with a run config, the folder is not this app
    return refuse(
        f"--app = {app_dir or here}: there is no FedDDPM app in it; give the folder of the app's pyproject.toml; "
        "`fedddpm new` writes one."
    )


def read_config(
    folder: Path,
    run_config: list[str] | None,
    problems: Sequence[str] = (),
    *,
    on_other_hosts: bool = False,
    base: Mapping[str, Scalar] = MappingProxyType({}),
    named: Scalar | None = None,
) -> tuple[Config, dict[str, Scalar]]:
    """Return an app's config with the overrides applied, and the overrides, which start with those in ``base``.

    Numbers that are read off the data replace ``"auto"`` in both. With ``on_other_hosts``, the hosts of the run read
    them, and the overrides keep ``"auto"``. ``base`` may be the config of a run from somewhere else: an algorithm of a
    module is taken from it only if the app, the overrides or ``named`` name it too.

    Raises
    ------
    ConfigError
        With everything that is wrong: ``problems`` of other options, the texts, the keys, the values.
    """
    given = read_overrides(RUN_CONFIG, run_config or [], kinds_of_keys())
    overrides = {**base, **given.values}
    values = default_run_config(folder) | overrides
    found = [*problems, *given.problems]
    own = (default_run_config(folder)["algorithm"], given.values.get("algorithm"), named)
    check_named(base.get("algorithm"), own, f"-c 'algorithm=\"{base.get('algorithm')}\"'")
    name = values["algorithm"]
    if isinstance(name, str) and ":" not in name and name not in REGISTRY:
        found.append(unknown_algorithm(name))
    try:
        numbers = _numbers(values, on_other_hosts) if auto_keys(values) else {}
    except ConfigError as error:
        raise ConfigError("\n".join([*found, str(error)])) from error
    config = load_config(values | numbers, found)
    return config, overrides if on_other_hosts else overrides | numbers


def check_named(algorithm: object, named: Collection[object], how: str) -> None:
    """Refuse a class of a module that only the config of a run names: its import would run code.

    Parameters
    ----------
    algorithm : object
        The value of ``algorithm`` in the run's config.json, which may come from somewhere else.
    named : collection
        What the user named: on the command line, or in the pyproject.toml of an app.
    how : str
        How to name it, for the message.

    Raises
    ------
    ConfigError
        When the user did not name it.
    """
    if isinstance(algorithm, str) and ":" in algorithm and algorithm not in named:
        raise ConfigError(
            f'algorithm = "{algorithm}" is code of the config.json of a run, which may come from somewhere else: if it '
            f"is yours, name it, {how}."
        )


def _numbers(values: dict[str, Scalar], on_other_hosts: bool) -> dict[str, Scalar]:
    """Return numbers for the keys that are ``"auto"``; only this needs the data, and so takes seconds."""
    from fedddpm_app.data.settings import leave_auto, read_auto

    return leave_auto(values) if on_other_hosts else read_auto(values)
