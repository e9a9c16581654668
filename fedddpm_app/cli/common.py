"""What the commands share: where the app is, reading overrides, saying things, refusing."""

import shlex
from pathlib import Path
from typing import Annotated, Never, TextIO

import click
import typer
from rich.console import Console

from fedddpm_app.config import Config, ConfigError, Scalar, default_run_config
from fedddpm_app.federation.flower_internals import parse_config_args
from fedddpm_app.launch.flower_run import to_toml
from fedddpm_app.recording.recorder import open_log, run_directory

BAD_INPUT = 2
FAILED = 1
console = Console()

RunConfigOption = Annotated[
    list[str] | None, typer.Option("--run-config", "-c", help="'key=value key=value', as for `flwr run`.")
]
AppOption = Annotated[Path | None, typer.Option("--app", help="Folder of the app's pyproject.toml.")]
DeviceOption = Annotated[str, typer.Option(help="auto | cpu | cuda | cuda:N | mps")]


def say(sentence: str) -> None:
    """Print a sentence as it is, on one line."""
    console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def refuse(sentence: str) -> Never:
    """Print one sentence on standard error and exit with code 2."""
    Console(stderr=True, soft_wrap=True).print(sentence, markup=False, highlight=False)
    raise typer.Exit(BAD_INPUT)


def find_app(app_dir: Path | None) -> Path:
    """Return the app's folder: the one given, the current one, or the one this package was installed from."""
    source = Path(__file__).resolve().parent.parent.parent
    for folder in [app_dir] if app_dir else [Path.cwd(), source]:
        try:
            if "algorithm" in default_run_config(folder):
                return folder.resolve()
        except (OSError, LookupError, ValueError):
            continue  # no pyproject.toml, no TOML, or no run config: not this app
    return refuse(
        f"--app = {app_dir or Path.cwd()}: there is no FedDDPM app in it; give the folder of its pyproject.toml."
    )


def parse_overrides(option: str, texts: list[str]) -> dict[str, Scalar]:
    """Read overrides as `flwr run` does, but refuse the words without a value that it drops silently."""
    try:
        for text in texts:
            for word in [] if text.endswith(".toml") else shlex.split(text):
                if "=" not in word:
                    raise ValueError(f"{word} has no value")
        merged: dict[str, Scalar] = {}
        for text in texts:  # one by one: Flower takes a file only alone
            merged |= dict(parse_config_args([text]))
        return merged
    except (click.ClickException, ValueError, OSError) as error:
        raise ConfigError(
            f"{option} {' '.join(texts)}: it cannot be read ({error}); write 'key=value key=\"text\"'."
        ) from error


def claim_directory(config: Config, overrides: dict[str, Scalar]) -> tuple[Path, TextIO]:
    """Return the run's folder and its opened log, after refusing what `flwr run` cannot be given."""
    to_toml({**overrides, "output-dir": str(Path.cwd() / config.run.output_dir)})
    directory = run_directory(config, Path.cwd())
    return directory, open_log(directory)
