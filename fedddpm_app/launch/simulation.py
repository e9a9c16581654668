"""A simulation: one `flwr run` of the app in a temporary Flower home, which is removed at the end."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from fedddpm_app.config import Scalar
from fedddpm_app.launch import guardian, homes
from fedddpm_app.launch.flower_run import FlowerRun
from fedddpm_app.recording.status import read_status

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WATCH_SECONDS = 1.0
_LOOKS_PER_LIST = 5  # a list of processes takes longer than a look at the status
_LAST_LINES_SECONDS = 10.0  # for the last lines of the log of a server whose process is gone


class SimulationRun(FlowerRun):
    """A simulation by `flwr run --stream`, in its own ``FLWR_HOME`` and on its own ports.

    A context manager: on exit it stops every process that was started in the home, including the
    background SuperLink, and removes the home. See ``FlowerRun`` for the parameters.

    Attributes
    ----------
    was_left : bool
        Whether Flower did not end in time after the end of the run, so that ``lines`` ended without it.
    """

    def __init__(self, app_dir: Path, overrides: dict[str, Scalar], federation_config: dict[str, Scalar]) -> None:
        super().__init__(app_dir, overrides, federation_config)
        self.was_left = False
        self._seen: set[psutil.Process] = set()
        named = "output-dir" in overrides and "run-name" in overrides
        self._directory = Path(str(overrides["output-dir"]), str(overrides["run-name"])) if named else None
        self.environment["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"] = str(free_port())
        self.environment["FLWR_LOCAL_CONTROL_API_PORT"] = str(free_port())
        direct = self.environment.get("no_proxy") or self.environment.get("NO_PROXY", "")
        for name in ("no_proxy", "NO_PROXY"):  # a proxy does not know our 127.0.0.1
            self.environment[name] = ",".join(filter(None, (direct, "127.0.0.1,localhost")))

    def __enter__(self) -> "SimulationRun":
        self._home = homes.create_home(self._directory)
        self._guardian = _start_guardian(self._home.path)
        self.environment["FLWR_HOME"] = str(self._home.path)
        return self

    def __exit__(self, *_: object) -> None:
        with _signals(signal.SIG_IGN):
            try:
                homes.stop_processes(self._home.path, self._seen)
            finally:
                self._home.close()
                self._guardian.terminate()
                self._guardian.wait()

    def lines(self) -> Iterator[str]:
        """Start the run, and yield its output lines until it ends.

        Flower may not end with the run, for example because it waits for a client that hangs. It then gets a minute, or
        a few seconds if the server's process is gone.
        """
        over = threading.Event()
        watch = threading.Thread(target=self._watch, args=(over, datetime.now(UTC)), daemon=True)
        watch.start()
        try:
            yield from super().lines()
        finally:
            over.set()
            watch.join()

    def _watch(self, over: threading.Event, began: datetime) -> None:
        """Stop following Flower some time after the end of the run."""
        looks = itertools.count(1)
        while self._directory and not over.wait(_WATCH_SECONDS):
            if next(looks) % _LOOKS_PER_LIST == 0:
                self._seen = homes.processes_of(self._home.path) | {p for p in self._seen if p.is_running()}
            status = read_status(self._directory)
            waited = status.seconds_since_end
            if not status.ended or status.ended < began or waited < _LAST_LINES_SECONDS:  # before: of a resumed run
                continue
            if waited > homes.LINGER_SECONDS or not homes.has_server(self._home.path):
                self.was_left = True
                self.leave()
                return


def _start_guardian(home: Path) -> subprocess.Popen[bytes]:
    """Start the process that removes the home if this process is killed."""
    return subprocess.Popen(
        [sys.executable, "-m", guardian.__name__, str(home)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


class Stopped(SystemExit):
    """A stop signal, as an exception; ``at`` is its time."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.at = datetime.now(UTC)


@contextlib.contextmanager
def leaving_in_order() -> Iterator[None]:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP in the body into ``Stopped``, and ignore the next ones.

    Open context managers in the body then close. Otherwise the run would continue after a SIGTERM, and nothing would
    follow it. A signal that is already ignored (such as SIGHUP under nohup) stays ignored.
    """

    def leave(number: int, _: object) -> None:
        for caught in _STOPPING:
            signal.signal(caught, signal.SIG_IGN)
        raise Stopped(number)

    with _signals(leave):
        yield


@contextlib.contextmanager
def _signals(handler: Callable[[int, Any], None] | signal.Handlers) -> Iterator[None]:
    """Replace the handlers of the stop signals in the body, except for signals that are ignored."""
    before = {number: signal.getsignal(number) for number in _STOPPING}
    for number, earlier in before.items():
        if earlier is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def free_port() -> int:
    """Return an unused port of the loopback address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
