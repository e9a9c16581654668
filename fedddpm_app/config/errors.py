"""The error of a run config, and the text of other errors."""

_SHOWN = 200  # characters


class ConfigError(ValueError):
    """A run config that cannot be used; the message names the key, its value and the fix, a line for each problem."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; without a message, the name of the error's type."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def printable(text: str) -> str:
    """Return a text that every log and terminal can take: lone surrogates, as another party may send, are escaped."""
    return text.encode(errors="backslashreplace").decode()


def shown(value: object) -> str:
    """Return a value for a message, at most as long as two lines."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
