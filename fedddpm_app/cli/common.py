"""Helpers of all commands: find the app, read overrides, print messages, refuse bad input."""

import io
import shlex
import sys
from pathlib import Path
from typing import Annotated, Never

import click
import typer
from rich.console import Console

from fedddpm_app.config import Config, ConfigError, Scalar, default_run_config, packaged_app
from fedddpm_app.federation.flower_internals import parse_config_args
from fedddpm_app.launch.flower_run import to_toml
from fedddpm_app.recording.directory import run_directory
from fedddpm_app.recording.log import RunLog

BAD_INPUT = 2
FAILED = 1
for _stream in (sys.stdout, sys.stderr):
    if isinstance(_stream, io.TextIOWrapper):  # a name that the terminal's encoding lacks is escaped, not an error
        _stream.reconfigure(errors="backslashreplace")
console = Console()

RunConfigOption = Annotated[
    list[str] | None, typer.Option("--run-config", "-c", help="Overrides, as 'key=value key=value' for `flwr run`.")
]
AppOption = Annotated[Path | None, typer.Option("--app", help="Folder of the app's pyproject.toml.")]
DeviceOption = Annotated[str, typer.Option(help="auto | cpu | cuda | cuda:N | mps")]


def say(sentence: str) -> None:
    """Print a sentence on one line, without markup."""
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def refuse(sentence: str) -> Never:
    """Print one sentence on standard error and exit with code 2."""
    Console(stderr=True, soft_wrap=True).print(sentence, markup=False, highlight=False)
    raise typer.Exit(BAD_INPUT)


def find_app(app_dir: Path | None) -> Path:
    """Return the app's folder: ``app_dir``, or else the current folder, or else that of this package's own app."""
    for folder in [app_dir] if app_dir else [Path.cwd(), packaged_app()]:
        try:
            if "algorithm" in default_run_config(folder):
                return folder.resolve()
        except (OSError, LookupError, ValueError):
            continue  # without a readable pyproject.toml with a run config, the folder is not this app
    return refuse(
        f"--app = {app_dir or Path.cwd()}: there is no FedDDPM app in it; give the folder of the app's pyproject.toml; "
        "`fedddpm new` writes one."
    )


def parse_overrides(option: str, texts: list[str]) -> dict[str, Scalar]:
    """Read overrides as `flwr run` does, but refuse words without a value, which `flwr run` drops silently."""
    try:
        for text in texts:
            for word in [] if text.endswith(".toml") else shlex.split(text):
                if "=" not in word:
                    raise ValueError(f"{word} has no value")
        merged: dict[str, Scalar] = {}
        for text in texts:  # one by one: Flower accepts a file only if it is the only argument
            merged |= dict(parse_config_args([text]))
        return merged
    except (click.ClickException, ValueError, OSError) as error:
        raise ConfigError(
            f"{option} {' '.join(texts)}: this cannot be read ({error}); write 'key=value key=\"text\"'."
        ) from error


def claim_directory(config: Config, overrides: dict[str, Scalar]) -> tuple[Path, RunLog]:
    """Create the run's folder and log, and return both; first refuse overrides that `flwr run` cannot take."""
    to_toml({**overrides, "output-dir": str(Path.cwd() / config.run.output_dir)})
    directory = run_directory(config, Path.cwd())
    return directory, RunLog(directory)
