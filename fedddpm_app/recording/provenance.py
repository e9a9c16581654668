"""Where a run comes from: package versions, git commit, and the folder it was called from."""

import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import click
import psutil

from fedddpm_app.config import Scalar
from fedddpm_app.federation.flower_internals import parse_config_args

_PACKAGES = ("fedddpm-app", "flwr", "ray", "torch", "diffusers", "datasets", "flwr-datasets", "numpy")
_FLWR_RUN = ("flwr", "run")
_PORT = "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"


def describe_environment() -> dict[str, object]:
    """Return versions of Python and packages, the platform, and the git commit of the installed source."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
    }


def _git_commit() -> str | None:
    """Return the commit of the source that pip installed editable; None where there is none."""
    try:
        origin = json.loads(metadata.distribution("fedddpm-app").read_text("direct_url.json") or "{}")
        source = str(origin.get("url", "")).removeprefix("file://")
        answer = subprocess.run(
            ["git", "-C", source, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (metadata.PackageNotFoundError, OSError, subprocess.SubprocessError, ValueError):
        return None
    return answer.stdout.strip()


def caller_directory(overrides: dict[str, Scalar]) -> Path | None:
    """Find the folder in which the user typed the ``flwr run`` that this run belongs to.

    The ServerApp of a local run works in the folder of the background SuperLink, which an earlier call
    may have started anywhere. With ``--stream`` the ``flwr run`` process is still there, and knows.

    Parameters
    ----------
    overrides : dict
        The run's ``--run-config`` overrides, which the process must have been given.

    Returns
    -------
    Path or None
        Its working directory; None where no such process runs on this machine (any more).
    """
    newest: tuple[float, Path] | None = None
    for process in psutil.process_iter():
        try:
            with process.oneshot():
                arguments = process.cmdline()
                if not _is_flwr_run(arguments) or overrides_of(arguments, Path(process.cwd())) != overrides:
                    continue
                if process.uids().real != os.getuid() or process.environ().get(_PORT) != os.environ.get(_PORT):
                    continue
                found = (process.create_time(), Path(process.cwd()))
        except (psutil.Error, OSError):
            continue
        newest = max(newest, found) if newest else found
    return newest[1] if newest else None


def _is_flwr_run(arguments: list[str]) -> bool:
    names = [Path(argument).name for argument in arguments]
    return any(tuple(names[i : i + 2]) == _FLWR_RUN for i in range(len(names)))


def overrides_of(arguments: list[str], directory: Path) -> dict[str, Scalar] | None:
    """Return the ``--run-config`` overrides of a command line that was typed in ``directory``.

    None where they cannot be read; a .toml file among them is looked for from ``directory``.
    """
    given = []
    for place, argument in enumerate(arguments):
        if argument in ("--run-config", "-c") and place + 1 < len(arguments):
            given.append(arguments[place + 1])
        elif argument.startswith("--run-config="):
            given.append(argument.removeprefix("--run-config="))
    try:
        return dict(parse_config_args([str(directory / text) if text.endswith(".toml") else text for text in given]))
    except (click.ClickException, ValueError, OSError):
        return None
