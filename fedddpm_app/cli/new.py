"""`fedddpm new`: write an app folder with an example algorithm."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from fedddpm_app.cli.common import refuse, say
from fedddpm_app.config import ConfigError
from fedddpm_app.launch.new_app import CLASS, EXAMPLE, write_new_app


def new(folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or an empty folder.")]) -> None:
    """Write an app folder for an algorithm of your own, which `fedddpm run --app DIR` and `flwr run DIR` accept."""
    try:
        write_new_app(folder)
    except ConfigError as error:
        refuse(str(error))
    name = shlex.quote(str(folder))
    say(f"app folder: {folder.resolve()}")
    say(f"change the algorithm {CLASS} in {EXAMPLE}.py, and the settings in pyproject.toml; then")
    say(f"run it:     fedddpm run --app {name}")
    say(f"first try:  fedddpm run --app {name} --engine inprocess -c 'num-rounds=1 local-steps=20'")
    say(f"with Flower, as README.md describes: flwr run {name} --stream")
