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
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from fedddpm_app.config import ConfigError, Scalar

COMPLETED = "finished:completed"
_STARTED = re.compile(r"Successfully started run (\d+)")
_STOP_SECONDS = 10.0
_STOP_POLL_SECONDS = 2.0

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
        """Stop every process of this home, again and again: one that is told to stop may start another first."""
        deadline = time.monotonic() + _STOP_SECONDS
        while mine := list(self._processes()):
            late = time.monotonic() > deadline
            for process in mine:
                with contextlib.suppress(psutil.Error):
                    process.kill() if late else process.terminate()
            psutil.wait_procs(mine, timeout=_STOP_POLL_SECONDS)

    def _processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                ours = process.environ().get("FLWR_HOME") == str(self._home)
                if ours and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                    yield process


@contextlib.contextmanager
def leaving_in_order() -> Iterator[None]:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP in the body into ``SystemExit``, and ignore the next ones.

    What the body opened is closed then: without this, a SIGTERM would leave the run going on with nobody
    to follow it. A signal that is ignored already (as SIGHUP under nohup) stays so.
    """

    def leave(number: int, _: object) -> None:
        for caught in before:
            signal.signal(caught, signal.SIG_IGN)
        raise SystemExit(128 + number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def to_toml(overrides: dict[str, Scalar]) -> str:
    """Write overrides as `--run-config` takes them: ``key=value`` pairs with TOML values.

    Raises
    ------
    ConfigError
        For a text with a double quote, which Flower's parser cannot read.
    """
    for key, value in overrides.items():
        if isinstance(value, str) and '"' in value:
            raise ConfigError(f"{key} = {value}: `flwr run` cannot take a double quote; use a name without one.")
    return " ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in overrides.items())


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
