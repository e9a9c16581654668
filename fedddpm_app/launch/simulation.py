"""A simulation: one `flwr run` of the app in a temporary Flower home, which is removed at the end."""

import contextlib
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from fedddpm_app.config import Scalar
from fedddpm_app.launch.flower_run import FlowerRun
from fedddpm_app.progress import logger

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TERMINATE_SECONDS = 10.0  # then the remaining processes are killed
_GIVE_UP_SECONDS = 30.0
_STOP_POLL_SECONDS = 1.0


class SimulationRun(FlowerRun):
    """A simulation by `flwr run --stream`, in its own ``FLWR_HOME`` and on its own ports.

    A context manager: on exit it stops every process that was started in the home, including the
    background SuperLink, and removes the home. See ``FlowerRun`` for the parameters.
    """

    def __init__(self, app_dir: Path, overrides: dict[str, Scalar], federation_config: dict[str, Scalar]) -> None:
        super().__init__(app_dir, overrides, federation_config)
        self.environment["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"] = str(free_port())
        self.environment["FLWR_LOCAL_CONTROL_API_PORT"] = str(free_port())
        direct = self.environment.get("no_proxy") or self.environment.get("NO_PROXY", "")
        for name in ("no_proxy", "NO_PROXY"):  # a proxy does not know our 127.0.0.1
            self.environment[name] = ",".join(filter(None, (direct, "127.0.0.1,localhost")))

    def __enter__(self) -> "SimulationRun":
        self._home = tempfile.mkdtemp(prefix="fedddpm-flwr-")
        self.environment["FLWR_HOME"] = self._home
        return self

    def __exit__(self, *_: object) -> None:
        with _signals(signal.SIG_IGN):
            try:
                self._stop_processes()
            finally:
                shutil.rmtree(self._home, ignore_errors=True)

    def _stop_processes(self) -> None:
        """Stop every process of this home, and repeat: a stopping process may start another process."""
        began = time.monotonic()
        known: set[psutil.Process] = set()
        while alive := self._alive(known):
            waited = time.monotonic() - began
            if waited > _GIVE_UP_SECONDS:
                logger.warning("processes are still alive: %s", ", ".join(f"pid {process.pid}" for process in alive))
                return
            for process in alive:
                with contextlib.suppress(psutil.Error):
                    process.kill() if waited > _TERMINATE_SECONDS else process.terminate()
            psutil.wait_procs(alive, timeout=_STOP_POLL_SECONDS)

    def _alive(self, known: set[psutil.Process]) -> list[psutil.Process]:
        """Add this home's processes and their children to ``known``, and return the processes that are alive.

        Ray's agents overwrite their environment, so they can be found only as children, while their parent is alive.
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

    Open context managers in the body then close. Otherwise the run would continue after a SIGTERM, and nothing would
    follow it. A signal that is already ignored (such as SIGHUP under nohup) stays ignored.
    """

    def leave(number: int, _: object) -> None:
        for caught in _STOPPING:
            signal.signal(caught, signal.SIG_IGN)
        raise SystemExit(128 + number)

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
