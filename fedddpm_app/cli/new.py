"""`fedddpm new`: write an app folder with an example algorithm."""

import shlex
from pathlib import Path

from fedddpm_app.cli.common import refuse, say
from fedddpm_app.config import ConfigError
from fedddpm_app.launch.new_app import CLASS, EXAMPLE, write_new_app


def new(folder: Path) -> None:
    """Write the folder, and print what to do next; ``commands.new`` describes the argument."""
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
