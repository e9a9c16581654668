"""One `flwr run` of the app in a Flower home of its own: started, read line by line, checked, cleaned up."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from fedddpm_app.config import Scalar

COMPLETED = "finished:completed"
_STARTED = re.compile(r"Successfully started run (\d+)")
_STOP_SECONDS = 10.0

FLOWER_ENVIRONMENT = {
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # use this environment, do not build another
    "FLWR_DISABLE_UPDATE_CHECK": "1",  # do not ask the network for a newer Flower
    "FLWR_TELEMETRY_ENABLED": "0",  # send no usage data
    "RAY_USAGE_STATS_ENABLED": "0",  # neither does Ray
    "RAY_DEDUP_LOGS": "0",  # keep the progress lines of all clients, not one of several that look alike
}


class FlowerRun:
    """A simulation by `flwr run --stream`, in its own ``FLWR_HOME`` and on its own ports.

    A context manager: on exit every process that was started in the home is stopped, among them the
    background SuperLink, and the home is removed.

    Parameters
    ----------
    app_dir : Path
        The folder of pyproject.toml.
    overrides : dict
        For ``--run-config``.
    federation_config : str
        For ``--federation-config``.
    """

    def __init__(self, app_dir: Path, overrides: dict[str, Scalar], federation_config: str) -> None:
        self.run_id: str | None = None
        self._home = Path(tempfile.mkdtemp(prefix="fedddpm-flwr-"))
        bin_dir = Path(sys.executable).parent
        self._flwr = str(bin_dir / "flwr") if (bin_dir / "flwr").exists() else "flwr"
        self._environment = {
            **os.environ,
            **FLOWER_ENVIRONMENT,
            "FLWR_HOME": str(self._home),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(_free_port()),
            "FLWR_LOCAL_CONTROL_API_PORT": str(_free_port()),
            "PATH": f"{bin_dir}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONUNBUFFERED": "1",
        }
        self._command = [self._flwr, "run", str(app_dir), "--stream", "--federation-config", federation_config]
        if overrides:
            self._command += ["--run-config", to_toml(overrides)]

    def __enter__(self) -> "FlowerRun":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_processes()
        shutil.rmtree(self._home, ignore_errors=True)

    def lines(self) -> Iterator[str]:
        """Start the run and yield what it prints, until it ends."""
        process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        for line in process.stdout or ():
            started = _STARTED.search(line)
            if started:
                self.run_id = started.group(1)
            yield line.rstrip("\n")
        process.wait()

    def status(self) -> str:
        """Return Flower's own word on the run, such as ``finished:completed``; ``not started`` if it never was."""
        if self.run_id is None:
            return "not started"
        answer = subprocess.run(
            [self._flwr, "ls", "--run-id", self.run_id, "--format", "json"],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        try:
            return str(json.loads(answer.stdout)["runs"][0]["status"])
        except (ValueError, LookupError):
            return "unknown"

    def _stop_processes(self) -> None:
        mine = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("FLWR_HOME") == str(self._home) and process.pid != os.getpid():
                    process.send_signal(signal.SIGTERM)
                    mine.append(process)
        _, alive = psutil.wait_procs(mine, timeout=_STOP_SECONDS)
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()


def to_toml(overrides: dict[str, Scalar]) -> str:
    """Write overrides as `--run-config` takes them: ``key=value`` pairs with TOML values."""
    return " ".join(f"{key}={json.dumps(value)}" for key, value in overrides.items())


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
