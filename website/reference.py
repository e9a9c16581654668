"""The reference: keys from pyproject.toml, commands from their declarations, and objects from their docstrings."""

import html
import json
import re
from collections.abc import Sequence

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

import fedddpm_app
from fedddpm_app.cli import app
from fedddpm_app.config.reference import Key, list_keys

_USAGE = "**Usage**:\n\n"
_CUT_SHORT = re.compile(r"^\* `([a-z]+)`: [^\n]*", re.MULTILINE)
# The title of a page, an introduction, the public names in it, and what else a subclass meets.
_OBJECTS = {
    "strategies": (
        "Strategies",
        "The server half of an algorithm. [Your own algorithm](../subclassing.md) has complete examples; "
        "[Python API](../api.md) says which methods are made to be overridden.",
        ["FederatedStrategy", "FedDDPM", "FedDDPMPlus", "RoundFailedError"],
        ["federation.description.AlgorithmDescription"],
    ),
    "clients": (
        "Clients",
        "The client half of an algorithm: a hook changes local training, and an action is other work.",
        ["TrainingHook", "TrainResult", "ClientAction", "ActionRequest", "ActionAnswer", "Batch"],
        ["training.hooks.LocalRound"],
    ),
    "weights": (
        "Weights and replies",
        "What travels between clients and server, and the arithmetic on it.",
        ["Weights", "RunningMean", "Exchanged", "Reply", "ReplyRefusedError"],
        ["weights.WeightsMismatchError", "weights.ParameterNames"],
    ),
    "configuration": (
        "Configuration objects",
        "A run's settings as frozen groups. [Configuration keys](keys.md) lists the keys that they are read from.",
        ["Config", "load_config", "ConfigError"],
        [],
    ),
    "simulate": (
        "simulate",
        "Any model by any algorithm, in this process. [Python API](../api.md#simulate) has the details.",
        ["simulate"],
        [],
    ),
    "pipelines": (
        "Pipelines",
        "Models that generate images of given classes. [Sharing a model](../export.md) has examples.",
        ["ClassConditionalPipeline"],
        [],
    ),
    "ports": (
        "What a strategy stands on",
        "The interfaces that a strategy gets: a learning task, its data, and a recorder. These modules may change "
        "between versions.",
        [],
        ["training.task.Task", "training.task.TrainingData", "training.task.Subset", "federation.ports.Recorder"],
    ),
}


def pages() -> dict[str, str]:
    """Return the Markdown of the reference by path."""
    found = {"reference/keys.md": keys_page(list_keys()), "reference/commands.md": commands_page()}
    for name, (title, introduction, public, others) in _OBJECTS.items():
        places = [f"{fedddpm_app._MODULES[each]}.{each}" for each in public] + others
        blocks = "\n\n".join(f"::: fedddpm_app.{place}" for place in places)
        imported = f"```python\nfrom fedddpm_app import {', '.join(public)}\n```\n\n" if public else ""
        found[f"reference/{name}.md"] = f"# {title}\n\n{introduction}\n\n{imported}{blocks}\n"
    return found


def public_names() -> list[str]:
    """Return the public names that have an entry."""
    return [name for _, _, public, _ in _OBJECTS.values() for name in public]


def keys_page(keys: Sequence[Key]) -> str:
    """Return a table of keys for each heading of pyproject.toml; a key is also an anchor."""
    parts = [
        "---\nsearch:\n  boost: 4\n---",
        "# Configuration keys",
        "Every key of `[tool.flwr.app.config]`, in the order of [`pyproject.toml`](../repository/pyproject.toml.md), "
        "whose comments are the meanings. The defaults are those of the demo. [Settings](../config.md) says how to "
        "give keys; `fedddpm config` prints this list, and `fedddpm config WORD` searches it.",
    ]
    for heading in dict.fromkeys(key.heading for key in keys):
        rows = [_row(key) for key in keys if key.heading == heading]
        name = heading.partition(" (docs/")[0]
        lines = ["| key | default | values | meaning |", "|---|---|---|---|", *rows]
        parts += [f"## {name[:1].upper()}{name[1:]}", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def commands_page() -> str:
    """Return the help of all commands, as typer writes it."""
    command = get_command(app)
    text = html.unescape(get_docs_for_click(obj=command, ctx=typer.Context(command), name="fedddpm", title="Commands"))
    _, listed, commands = text.partition("**Commands**:\n\n")
    return _CUT_SHORT.sub(lambda match: _linked(match, commands), text.replace(_USAGE, "")) if listed else text


def _linked(match: re.Match[str], commands: str) -> str:
    """Return a line of the list of commands with a link, and with the whole first sentence of the command's help."""
    full = re.search(rf"^#+ `(fedddpm (?:data )?{match[1]})`\n\n([^\n]*?\.)(?: |$)", commands, re.MULTILINE)
    return f"* [`{match[1]}`](#{full[1].replace(' ', '-')}): {full[2]}" if full else match[0]


def _row(key: Key) -> str:
    default = json.dumps(key.default, ensure_ascii=False)
    name, meaning = f"`{key.name}`{{ #key-{key.name} }}", _cell(key.meaning)
    return f"| {name} | `{default}` | {_cell(key.type)} | {meaning} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
