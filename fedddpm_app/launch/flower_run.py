"""One run with the `flwr` command: start it, read its lines, query its status."""

import io
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedddpm_app import limits
from fedddpm_app.config import ConfigError, Scalar, plain
from fedddpm_app.disk.owned import OwnedFolder

CONFIG_PREFIX = "fedddpm-config-"
COMPLETED = "finished:completed"
_STATUS_SECONDS = 60.0
_PYPROJECT = """
[project]
name = "fedddpm-{module}"
version = "1.0.0"
license = {{ file = "LICENSE" }}
dependencies = ["flwr>=1.41,<2"]
[tool.flwr.app]
publisher = "fedddpm"
fab-format-version = 1
flwr-version-target = "1.41.0"
[tool.flwr.app.components]
serverapp = "{server}"
clientapp = "{client}"
[tool.flwr.app.config]
"""
_STARTED = re.compile(r"Successfully started run (\d+)")

FLOWER_ENVIRONMENT = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # use this environment, do not build another environment
    "FLWR_DISABLE_UPDATE_CHECK": "1",  # do not ask the network for a newer Flower
    "FLWR_TELEMETRY_ENABLED": "0",  # send no usage data
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray sends no usage data either
    "RAY_memory_monitor_refresh_ms": "0",  # it kills actors; without it the system kills the largest, an actor's child
    "RAY_DEDUP_LOGS": "0",  # keep the progress lines of all clients, even if they are similar
}
_OF_A_NOTEBOOK = {"FORCE_COLOR", "CLICOLOR_FORCE", "MPLBACKEND"}  # a kernel sets them for its own output
_QUIET = "ignore::FutureWarning:ray._private.worker"  # advice to the authors of Flower, not to a user


class FlowerRun:
    """A run of an app on a SuperLink.

    Parameters
    ----------
    app_dir : Path
        The folder of the app's pyproject.toml.
    overrides : dict
        The values for ``--run-config``.
    federation_config : dict
        The values for ``--federation-config``.
    connection : str
        The SuperLink's name in Flower's config.toml; empty for Flower's default.

    Attributes
    ----------
    run_id : str or None
        Known once the run has started.

    Raises
    ------
    ConfigError
        For a value that ``flwr run`` cannot take.
    """

    def __init__(
        self,
        app_dir: Path,
        overrides: Mapping[str, Scalar],
        federation_config: Mapping[str, Scalar],
        connection: str = "",
    ) -> None:
        self.run_id: str | None = None
        self._followed: subprocess.Popen[str] | None = None
        self.connection = connection
        bin_dir = Path(sys.executable).parent
        self._flwr = str(bin_dir / "flwr") if (bin_dir / "flwr").exists() else "flwr"
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in _OF_A_NOTEBOOK},
            **FLOWER_ENVIRONMENT,
            "PATH": f"{bin_dir}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": ",".join(filter(None, (_QUIET, os.environ.get("PYTHONWARNINGS")))),
        }
        self._command = ["run", str(app_dir), *self._named(), "--stream"]
        given = {"--federation-config": federation_config, "--run-config": overrides}
        self._files = {option: to_toml(values) for option, values in given.items() if values}

    @classmethod
    def of(cls, run_id: str, connection: str) -> "FlowerRun":
        """Return a run that has already been started."""
        run = cls(Path(), {}, {}, connection)
        run.run_id = run_id
        return run

    def lines(self) -> Iterator[str]:
        """Start the run, and yield its output lines until it ends.

        Flower reads the values from files, because it cannot read every text on its command line.
        """
        with OwnedFolder.create(CONFIG_PREFIX) as folder:
            command = [*self._command]
            for option, text in self._files.items():
                path = folder / f"{option.strip('-')}.toml"
                path.write_text(text, encoding="utf-8")
                command += [option, str(path)]
            for line in self._read(*command):
                started = _STARTED.search(line)
                if started:
                    self.run_id = started.group(1)
                yield line

    def log(self) -> Iterator[str]:
        """Yield the log of the run ``run_id`` so far."""
        return self._read("log", str(self.run_id), *self._named(), "--show")

    def status(self) -> str:
        """Return the status that Flower reports, such as ``finished:completed``, or ``not started``."""
        if self.run_id is None:
            return "not started"
        command = [self._flwr, "ls", *self._named(), "--run-id", self.run_id, "--format", "json"]
        options: dict[str, Any] = {"env": self.environment, "capture_output": True, "text": True}
        try:
            answer = subprocess.run(command, timeout=_STATUS_SECONDS, check=False, **options)
            return str(json.loads(answer.stdout)["runs"][0]["status"])
        except (ValueError, LookupError, subprocess.TimeoutExpired):
            return "unknown"

    def leave(self) -> None:
        """End the `flwr` command that is being followed; the run itself goes on."""
        if self._followed is not None:
            self._followed.terminate()

    def _named(self) -> list[str]:
        return [self.connection] if self.connection else []

    def _read(self, *arguments: str) -> Iterator[str]:
        """Start `flwr`, and yield its output lines, without control characters, until it ends or until ``leave``."""
        process = self._followed = subprocess.Popen(
            [self._flwr, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        stream = process.stdout or io.StringIO()
        while line := stream.readline(limits.LOG_LINE):  # a longer line becomes several
            yield plain(line.rstrip("\n"))
        process.wait()


def has_ended(status: str) -> bool:
    """Return whether a status that Flower reports is that of a run that has ended."""
    return status.startswith("finished")


def to_toml(overrides: Mapping[str, Scalar]) -> str:
    """Format overrides as TOML: one ``key=value`` per line, which `fedddpm run --run-config` accepts as a text too.

    Raises
    ------
    ConfigError
        For a text that is not Unicode, such as the path of a file whose name is not in UTF-8.
    """
    for key, value in overrides.items():
        if isinstance(value, str) and any(unicodedata.category(character) == "Cs" for character in value):
            raise ConfigError(f"{key} = {value!r} is not in UTF-8, which `flwr run` needs: rename the file or folder.")
    return "\n".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in overrides.items())


def write_app(
    folder: Path, module: str, source: str, server: str, client: str, run_config: Mapping[str, Scalar] | None = None
) -> None:
    """Write a Flower app with one module into a folder.

    Parameters
    ----------
    folder : Path
        An existing, empty folder.
    module : str
        The module's name; the app's name is ``fedddpm-<module>``.
    source : str
        The module's code.
    server, client : str
        The names of the ServerApp and the ClientApp in it.
    run_config : dict, optional
        The keys of the app's run config, with their defaults.
    """
    keys = "\n".join(f"{key} = {json.dumps(value)}" for key, value in (run_config or {}).items())
    text = _PYPROJECT.format(module=module.replace("_", "-"), server=f"{module}:{server}", client=f"{module}:{client}")
    (folder / "pyproject.toml").write_text(f"{text}{keys}\n", encoding="utf-8")
    (folder / "LICENSE").write_text("Apache-2.0\n", encoding="utf-8")
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
