"""The origin of a run: package versions, git commit, and the folder of the calling command."""

import json
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import click
import psutil

from fedddpm_app.config import Scalar
from fedddpm_app.disk.code import package_versions
from fedddpm_app.federation.flower_internals import parse_config_args

_FLWR_RUN = ("flwr", "run")
_PORT = "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"


def describe_environment() -> dict[str, object]:
    """Return the versions of Python and packages, the platform, and the git commit of the source that runs.

    Code that is not in a clone (a copy that Flower made) has the commit of the source that pip installed as editable.
    ``git_clean`` is whether the tracked files are those of the commit.
    """
    commit, clean = source_version()
    return {
        "git_commit": commit,
        "git_clean": clean,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
    }


@cache
def source_version() -> tuple[str | None, bool | None]:
    """Return the git commit of the source, and whether its tracked files are those of the commit; None if unknown.

    This process asks once, because code that it has imported does not change with the files.
    """
    commit = _git("rev-parse", "HEAD")
    return commit, None if commit is None else not _git("status", "--porcelain", "--untracked-files=no")


def _git(*arguments: str) -> str | None:
    """Return the answer of git about the source; None if there is none."""
    try:
        source = source_folder()
        answer = subprocess.run(
            ["git", "-C", source, *arguments],  # noqa: S607 # the user's own
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (metadata.PackageNotFoundError, OSError, subprocess.SubprocessError, ValueError):
        return None
    return answer.stdout.strip()


def source_folder(package: Path = Path(__file__).parents[1]) -> Path:
    """Return the clone of a package, by default this one; the folder that pip installed if it is in no clone.

    Raises
    ------
    ValueError
        When pip installed no folder.
    """
    if (package.parent / ".git").exists():
        return package.parent
    origin = json.loads(metadata.distribution("fedddpm-app").read_text("direct_url.json") or "{}")
    url = urlsplit(str(origin.get("url", "")))
    if url.scheme != "file":
        raise ValueError(f"fedddpm-app was not installed from a folder: {url.geturl()!r}")
    return Path(url2pathname(url.path))


def caller_directory(overrides: dict[str, Scalar]) -> Path | None:
    """Find the working directory of the ``flwr run`` command that started this run.

    The ServerApp of a local run works in the folder of the background SuperLink, which an earlier command
    may have started in any folder. With ``--stream`` the ``flwr run`` process is still alive, so that its working
    directory can be read.

    Parameters
    ----------
    overrides : dict
        The run's ``--run-config`` overrides; the process must have the same.

    Returns
    -------
    Path or None
        The working directory; None if no such process is running on this machine.
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
    """Return the ``--run-config`` overrides of a command line; None if they cannot be read.

    The path of a .toml file among them is relative to ``directory``, the command's working directory.
    """
    given = []
    for index, argument in enumerate(arguments):
        if argument in ("--run-config", "-c") and index + 1 < len(arguments):
            given.append(arguments[index + 1])
        elif argument.startswith("--run-config="):
            given.append(argument.removeprefix("--run-config="))
    try:
        return dict(parse_config_args([str(directory / text) if text.endswith(".toml") else text for text in given]))
    except (click.ClickException, ValueError, OSError):
        return None
