"""What an actor and its child process send to each other: the outcome of a message, as pickles over a socket pair."""

import pickle
from dataclasses import dataclass
from typing import IO, Any

from flwr.app import Message, RecordDict

_PICKLE = 5  # a large buffer is written as it is, without a copy


class ForwardedError(Exception):
    """Base of the exceptions of the process, which are raised again under their own names."""


@dataclass(frozen=True)
class Answer:
    """The reply to a message, and the client's state after it."""

    reply: Message
    state: RecordDict


@dataclass(frozen=True)
class Failure:
    """An exception of the app, as text: its class may be importable only in the process.

    ``is_final`` says that the process may not be fit for another message: memory ran out, or the GPU failed.
    """

    module: str
    name: str
    text: str
    trace: str
    is_final: bool

    def as_exception(self) -> Exception:
        """Return an exception with the same class name and text, and the original traceback as a note."""
        error: Exception = type(self.name, (ForwardedError,), {"__module__": self.module})(self.text)
        error.add_note(self.trace)
        return error


def send(content: object, file: IO[bytes]) -> None:
    """Write an object to the other end."""
    pickle.dump(content, file, _PICKLE)
    file.flush()


def receive(file: IO[bytes]) -> Any:
    """Read an object from the other end; ``EOFError`` if that has ended."""
    return pickle.load(file)  # noqa: S301 # the other end is this program, by a socket that nobody else has
