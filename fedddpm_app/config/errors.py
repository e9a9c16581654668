"""The error of a run config, and what errors of libraries say."""


class ConfigError(ValueError):
    """A run config that cannot be run; the message names the key, its value and the fix."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; of one without a message the error's name."""
    return next(iter(str(error).splitlines()), type(error).__name__)
