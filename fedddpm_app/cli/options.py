"""The options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


def complete_pairs(incomplete: str) -> list[tuple[str, str]]:
    """Return the completions of a text of --run-config; only this needs the keys, and so pydantic."""
    from fedddpm_app.cli import completion

    return completion.complete_pairs(incomplete)


RunConfigOption = Annotated[
    list[str] | None,
    typer.Option(
        "--run-config",
        "-c",
        metavar="TEXT",
        help="Keys, such as 'seed=1', or a TOML file. `fedddpm config` lists the keys.",
        autocompletion=complete_pairs,
    ),
]
AppOption = Annotated[Path | None, typer.Option("--app", help="Folder of the app's pyproject.toml.")]
DeviceOption = Annotated[str, typer.Option(help="auto | cpu | cuda | cuda:N | mps")]
SuperlinkOption = Annotated[
    str, typer.Option("--superlink", metavar="NAME", help="A connection of Flower's config.toml.")
]
LARGEST_MB = 200.0
TotalOption = Annotated[float, typer.Option(min=0, help="Size limit of all files together in MB.")]
LargestOption = Annotated[float, typer.Option(min=0, help="Size limit in MB; larger files stay on the server.")]


class Engine(StrEnum):
    """The engine that runs the clients."""

    simulation = "simulation"
    inprocess = "inprocess"
