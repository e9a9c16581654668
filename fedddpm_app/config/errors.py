"""The error of a run config, and the text of other errors."""


class ConfigError(ValueError):
    """A run config that cannot be used; the message names the key, its value and the fix."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; without a message, the name of the error's type."""
    return next(iter(str(error).splitlines()), type(error).__name__)
