"""The options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

RunConfigOption = Annotated[
    list[str] | None, typer.Option("--run-config", "-c", help="Overrides, as 'key=value key=value' for `flwr run`.")
]
AppOption = Annotated[Path | None, typer.Option("--app", help="Folder of the app's pyproject.toml.")]
DeviceOption = Annotated[str, typer.Option(help="auto | cpu | cuda | cuda:N | mps")]
SuperlinkOption = Annotated[
    str, typer.Option("--superlink", metavar="NAME", help="A connection of Flower's config.toml.")
]
LargestOption = Annotated[float, typer.Option(min=0, help="Size limit in MB; larger files stay on the server.")]


class Engine(StrEnum):
    """The engine that runs the clients."""

    simulation = "simulation"
    inprocess = "inprocess"
