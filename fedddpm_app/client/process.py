"""The process in which a Ray actor has its messages answered: its death or its hang does not cost the actor.

Flower gives work also to actors that have died, and waits for ever for an actor that hangs. The actor therefore only
forwards: the process has torch, the model and the data. It is stopped at a message's time limit, and replaced when it
has ended. This module imports no torch, because actors import it.

Parent and child are one program: they exchange pickles over a socket pair, as Ray does between its own processes. The
child's standard input is a pipe from the parent, which shows the child the end of its parent.
"""

import contextlib
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import cache
from typing import IO

from flwr.app import Context, Message

from fedddpm_app.client.outcomes import Answer, Failure, receive, send
from fedddpm_app.federation.messages.deadlines import START_SECONDS, seconds_left, seconds_to_work, time_limit

_START_SECONDS = 600.0  # for the imports of a process; then it hangs, and is replaced
_EXIT_SECONDS = 10.0  # for a process that closed its connection to exit; a large one needs a moment
_SERVE = "import sys; sys.path = {!r}\nfrom fedddpm_app.client.serving import serve; serve({!r}, {!r})"


class ClientProcessError(RuntimeError):
    """The process did not answer a message: it died, or was stopped at the time limit."""


class NotStartedError(EOFError):
    """The process ended before it began to work on a message."""


@cache
def process_of(app: str) -> "ClientProcess":
    """Return the process that this actor keeps for an app, over all messages: Flower sends the app with each one."""
    return ClientProcess(app)


class ClientProcess:
    """Answers messages in a child process, one after the other.

    Parameters
    ----------
    app : str
        The function that creates the ClientApp, as "module:function"; it is called in the child.
    """

    def __init__(self, app: str) -> None:
        self._app = app
        self._child = _Child(app)

    def answer(self, message: Message, context: Context) -> Message:
        """Return the reply, and replace ``context.state`` by the client's new state.

        Raises
        ------
        ClientProcessError
            If the child dies or does not answer in time. A new child is then started at once, so that its imports
            are under way when the next message arrives; also after an exception that is final.
        Exception
            The app's own exception, with its class name and text. If the app cannot be created, a new child tries again
            with the next message.
        """
        limit = time_limit(message)
        if seconds_left(message) <= 0:
            raise ClientProcessError("it waited for a free actor, and did not start before its message was too old")
        try:
            outcome = self._outcome(message, context)
        except TimeoutError:  # the imports go on, for the next message
            raise ClientProcessError("its process had not started in time") from None
        except (OSError, EOFError, pickle.UnpicklingError):
            was_late, reason = self._child.is_late, self._replace()
            late = f"its process did not answer within {limit:g} s, and was stopped"
            raise ClientProcessError(late if was_late else reason) from None
        if isinstance(outcome, Failure):
            raise outcome.as_exception()
        context.state = outcome.state
        return outcome.reply

    def stop(self) -> None:
        """Stop the child; the next message starts another one."""
        self._child.kill()
        self._child.end()

    def _outcome(self, message: Message, context: Context) -> Answer | Failure:
        """Have the child answer, and replace it if it cannot answer another message."""
        if not self._child.is_alive():
            self._replace()
        try:
            outcome = self._child.ask(message, context)
        except NotStartedError:  # it was about to end already
            if self._child.is_late:
                raise
            self._replace()
            outcome = self._child.ask(message, context)
        if not self._child.is_ready:  # it could not create the app, which may be repaired before the next message
            self.stop()
        elif self._child.is_late or (isinstance(outcome, Failure) and outcome.is_final):
            self._child.kill()  # one that is late was stopped just after its answer
            self._replace()
        return outcome

    def _replace(self) -> str:
        """Start a new child in place of one that ended, and return why it ended."""
        reason = self._child.end()
        self._child = _Child(self._app)
        return reason


class _Child:
    """One child process, from its start to its end.

    It leads a process group of its own, so that processes which it starts end with it.

    Attributes
    ----------
    is_ready : bool
        Whether it has created the app.
    is_late : bool
        Whether it was stopped at a time limit.
    """

    def __init__(self, app: str) -> None:
        self.is_late = False
        self.is_ready = False
        self._ended = ""
        self._began = time.monotonic()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVE.format(sys.path, theirs.fileno(), app)],
                stdin=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        self._socket = ours
        self._requests: IO[bytes] = ours.makefile("wb")
        self._answers: IO[bytes] = ours.makefile("rb")

    def is_alive(self) -> bool:
        """Return whether the process is running, and has not hung in its imports."""
        starting = time.monotonic() - self._began
        if self._process.poll() is None and not self.is_ready and starting > _START_SECONDS:
            self.kill()
            self.end()
        return self._process.poll() is None

    def ask(self, message: Message, context: Context) -> Answer | Failure:
        """Send a message and return its outcome, or the failure to create the app.

        A process that has not answered in time is killed.

        Raises
        ------
        TimeoutError
            If the app is not created in time; the process goes on.
        NotStartedError
            If the process ended before it had the message.
        OSError, EOFError, pickle.UnpicklingError
            If the process ended before it answered.
        """
        failure = self._wait_until_ready(min(START_SECONDS, seconds_left(message)))
        if failure is not None:
            return failure
        timer = threading.Timer(seconds_to_work(message), self._stop_late)
        timer.daemon = True
        timer.start()
        try:
            try:
                send((message, context), self._requests)
                receive(self._answers)  # it has the message
            except (OSError, EOFError) as error:
                raise NotStartedError from error
            outcome: Answer | Failure = receive(self._answers)
        finally:
            timer.cancel()
        return outcome

    def _wait_until_ready(self, seconds: float) -> Failure | None:
        """Wait until the process has created the app, and return None, or the reason why it could not."""
        if self.is_ready:
            return None
        if not select.select([self._socket], [], [], max(0.0, seconds))[0]:
            raise TimeoutError
        failure: Failure | None = receive(self._answers)
        self.is_ready = failure is None
        return failure

    def end(self) -> str:
        """Return why the process has ended, after closing the connection and, if need be, killing the process."""
        self._ended = self._ended or self._end()
        return self._ended

    def _end(self) -> str:
        closed = "its process closed the connection to its actor"
        try:
            code: int | None = self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        self.kill()
        for file in (self._requests, self._answers, self._socket, self._process.stdin):
            with contextlib.suppress(OSError):  # such as the rest of a message that was not read
                if file is not None:
                    file.close()
        return closed if code is None else _describe(code)

    def kill(self) -> None:
        """Kill the process and all processes of its group, and end a read from it, even if the kernel keeps it."""
        with contextlib.suppress(OSError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _stop_late(self) -> None:
        self.is_late = True
        self.kill()


def _describe(code: int) -> str:
    if code >= 0:
        return f"its process exited with code {code}"
    cause = "out of memory?" if -code == signal.SIGKILL else signal.strsignal(-code)
    return f"its process died (signal {-code}: {cause})"
