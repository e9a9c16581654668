"""The child's side of ``process``: it creates the ClientApp and answers messages until its parent ends."""

import fcntl
import os
import select
import signal
import socket
import sys
import traceback

from flwr.app import Context, Message

from fedddpm_app.client.forwarding import Call, call_app, create_app
from fedddpm_app.client.outcomes import Answer, Failure, receive, send
from fedddpm_app.disk.private import restrict_umask
from fedddpm_app.federation.flower_internals import TaskIdentity

_FINAL = {"MemoryError", "OutOfMemoryError", "AcceleratorError"}  # after the last, a CUDA context remains unusable
_FINAL_TEXTS = ("can't allocate memory", "CUDA error", "device-side assert", "an illegal memory access", "cuDNN error")


def serve(descriptor: int, app: str) -> None:
    """Answer the messages that arrive on a socket until it is closed.

    It sends None when the app is created, and again for each message that has arrived, before the outcome. If the app
    cannot be created, it sends the failure and ends.

    Parameters
    ----------
    descriptor : int
        The socket.
    app : str
        As in ``ForwardingClientApp``.
    """
    _end_with_parent()
    restrict_umask()
    os.set_inheritable(descriptor, False)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with socket.socket(fileno=descriptor) as connection:
        requests, answers = connection.makefile("rb"), connection.makefile("wb")
        try:
            call = create_app(app)
        except Exception as error:  # noqa: BLE001 - code of a user
            send(_failure(error), answers)
            return
        send(None, answers)
        while True:
            try:
                message, context = receive(requests)
            except EOFError:
                return
            send(None, answers)
            send(_outcome(call, message, context), answers)
            del message, context


def _outcome(call: Call, message: Message, context: Context) -> Answer | Failure:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = context.run_id, context.node_id, 1
    try:
        return Answer(call_app(call, message, context), context.state)
    except Exception as error:  # noqa: BLE001 - a client's exception becomes its reply
        return _failure(error)


def _failure(error: Exception) -> Failure:
    kind = type(error)
    trace = "".join(traceback.format_exception(error))
    return Failure(kind.__module__, kind.__qualname__, str(error), trace, _is_final(error, trace))


def _is_final(error: Exception, trace: str) -> bool:
    """Return whether memory ran out, or a GPU failed, by names and texts: this module imports no torch.

    The trace also has the exceptions that led to this one.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    return not names.isdisjoint(_FINAL) or any(text in trace for text in _FINAL_TEXTS)


def _end_with_parent() -> None:
    """Have the kernel end this process group when the parent's end of the pipe at standard input is closed.

    The signal works whatever this process does at that moment. On Linux it ends a process by default.
    """
    pipe = sys.stdin.fileno()
    if sys.platform != "linux":
        signal.signal(signal.SIGIO, lambda *_: os.killpg(0, signal.SIGKILL))
    fcntl.fcntl(pipe, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    watch = select.poll()
    watch.register(pipe, select.POLLHUP)
    if watch.poll(0):  # the parent ended before
        sys.exit(1)
