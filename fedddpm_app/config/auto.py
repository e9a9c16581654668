"""Keys that may be ``"auto"``: ``data.settings`` replaces them by numbers that it reads off the data."""

from collections.abc import Mapping

from fedddpm_app.config.fields import Scalar

AUTO = "auto"
AUTO_KEYS = ("image-channels", "image-size", "num-classes")


def auto_keys(run_config: Mapping[str, Scalar]) -> list[str]:
    """Return the keys of a run config that are ``"auto"``."""
    return [key for key in AUTO_KEYS if run_config.get(key) == AUTO]
