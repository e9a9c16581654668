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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from fedddpm_app.config import ConfigError, Scalar
from fedddpm_app.progress import logger

COMPLETED = "finished:completed"
_STARTED = re.compile(r"Successfully started run (\d+)")
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TERMINATE_SECONDS = 10.0  # then the processes still there are killed
_GIVE_UP_SECONDS = 30.0
_STOP_POLL_SECONDS = 1.0

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
    federation_config : dict
        For ``--federation-config``.

    Raises
    ------
    ConfigError
        For a value that ``flwr run`` cannot be given.
    """

    def __init__(self, app_dir: Path, overrides: dict[str, Scalar], federation_config: dict[str, Scalar]) -> None:
        self.run_id: str | None = None
        bin_dir = Path(sys.executable).parent
        self._flwr = str(bin_dir / "flwr") if (bin_dir / "flwr").exists() else "flwr"
        self._environment = {
            **os.environ,
            **FLOWER_ENVIRONMENT,
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_port()),
            "FLWR_LOCAL_CONTROL_API_PORT": str(free_port()),
            "PATH": f"{bin_dir}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONUNBUFFERED": "1",
        }
        self._command = [self._flwr, "run", str(app_dir), "--stream"]
        for option, values in (("--federation-config", federation_config), ("--run-config", overrides)):
            if values:
                self._command += [option, to_toml(values)]

    def __enter__(self) -> "FlowerRun":
        self._home = tempfile.mkdtemp(prefix="fedddpm-flwr-")
        self._environment["FLWR_HOME"] = self._home
        return self

    def __exit__(self, *_: object) -> None:
        with _signals(signal.SIG_IGN):
            try:
                self._stop_processes()
            finally:
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
        """Stop every process of this home, and look again: one that is told to stop may start another first."""
        began = time.monotonic()
        known: set[psutil.Process] = set()
        while alive := self._alive(known):
            waited = time.monotonic() - began
            if waited > _GIVE_UP_SECONDS:
                logger.warning("could not be stopped: %s", ", ".join(f"pid {process.pid}" for process in alive))
                return
            for process in alive:
                with contextlib.suppress(psutil.Error):
                    process.kill() if waited > _TERMINATE_SECONDS else process.terminate()
            psutil.wait_procs(alive, timeout=_STOP_POLL_SECONDS)

    def _alive(self, known: set[psutil.Process]) -> list[psutil.Process]:
        """Return what runs of ``known``, after adding this home's processes and what they started.

        Ray's agents overwrite their own environment: they are known as children only, while their parent lives.
        """
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("FLWR_HOME") == self._home:
                    known |= {process, *process.children(recursive=True)}
        known.discard(psutil.Process())
        return [process for process in known if _is_running(process)]


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@contextlib.contextmanager
def leaving_in_order() -> Iterator[None]:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP in the body into ``SystemExit``, and ignore the next ones.

    What the body opened is closed then: without this, a SIGTERM would leave the run going on with nobody
    to follow it. A signal that is ignored already (as SIGHUP under nohup) stays so.
    """

    def leave(number: int, _: object) -> None:
        for caught in _STOPPING:
            signal.signal(caught, signal.SIG_IGN)
        raise SystemExit(128 + number)

    with _signals(leave):
        yield


@contextlib.contextmanager
def _signals(handler: Callable[[int, Any], None] | signal.Handlers) -> Iterator[None]:
    """Give the signals that stop a process another handler in the body, but for those that are ignored."""
    before = {number: signal.getsignal(number) for number in _STOPPING}
    for number, earlier in before.items():
        if earlier is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


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


def free_port() -> int:
    """Return a port of the loopback address that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
