"""The reason why a client failed or is left out, as one short line for the log and ``stats.jsonl``.

A client may send any text: a traceback, colour codes, megabytes.
"""

import re

from flwr.app import Error

from fedddpm_app.config import one_line
from fedddpm_app.federation.flower_internals import ErrorCode
from fedddpm_app.limits import LONGEST_TEXT

DEAD_ACTOR = (
    "a Ray actor was killed. Flower continues to send messages to dead actors, and every later round would lose "
    "clients: the run ends here, and can be resumed"
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_FLOWERS_FORM = re.compile(r"<class '([\w.()]{1,200})'>:<'")
_RAISED_AS = re.compile(r"(?:[A-Za-z_]\w*\.)*([A-Za-z_]\w*): ")
_WRAPPERS = "Exception ClientAppException occurred. Message:"  # of Flower's simulation
_FRAME = "  File "
_KILLED = {  # the last is the word of Ray's memory monitor
    f"ray.exceptions.{name}"
    for name in ("ActorDiedError", "ActorUnavailableError", "RayActorError", "OutOfMemoryError")
}
_DECLINED = "DeclinedError"  # of ``training.declined``
OWN = ("ConfigError", "StateError", "ProtocolError", "DivergedError", _DECLINED)  # their sentences need no name


def reason_of(error: Error) -> str:
    """Return a client's exception as ``X: message``, out of the forms in which Flower and Ray report it.

    Flower writes ``<class 'X'>:<'message'>``. In a simulation X is Ray's ``RayTaskError``, and its message is a
    traceback whose first exception is the client's.
    """
    text = _COLOUR.sub("", (error.reason or "")[:LONGEST_TEXT])
    found = _FLOWERS_FORM.match(text)
    if found is None:
        return one_line(text) or "the client failed without a reason"
    name, message = found[1].rpartition(".")[2], text[found.end() :].removesuffix("'>")
    if "RayTaskError" in found[1]:
        raised = _raised_in(message)
        typed = _RAISED_AS.match(raised)
        name, message = (typed[1], raised[typed.end() :]) if typed else ("RayTaskError", raised)
    message = message.strip().removeprefix(_WRAPPERS).strip()
    return one_line(message if name.endswith(OWN) else f"{name}: {message}")


def declined(reason: str) -> Error:
    """Return the error of a client that declines, see ``DeclinedError``; it has the form that Flower gives others."""
    return Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=f"<class '{_DECLINED}'>:<'{reason}'>")


def has_declined(error: Error) -> bool:
    """Return whether a client's error says that it declines."""
    found = _FLOWERS_FORM.match((error.reason or "")[:LONGEST_TEXT])
    return found is not None and found[1].endswith(_DECLINED)


def is_dead_actor(error: Error) -> bool:
    """Return whether an error of a simulation is Ray's for an actor whose process ended."""
    found = _FLOWERS_FORM.match((error.reason or "")[:LONGEST_TEXT])
    return found is not None and found[1] in _KILLED


def _raised_in(traceback: str) -> str:
    """Return ``X: message`` of the first exception in a chain of tracebacks."""
    first = traceback.partition("\n\nThe above exception was the direct cause")[0]
    lines = first.splitlines()
    frames = [number for number, line in enumerate(lines) if line.startswith(_FRAME)]
    after = lines[frames[-1] + 1 :] if frames else lines[-1:]
    while len(after) > 1 and after[0].startswith("    "):  # the frame's code
        after = after[1:]
    return "\n".join(after)
