"""The error of a run config."""


class ConfigError(ValueError):
    """A run config that cannot be run; the message names the key, its value and the fix."""
