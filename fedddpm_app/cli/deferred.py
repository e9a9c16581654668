"""A command answers at once: its declaration is light, and the module that does its work is imported when it runs."""

import functools
import importlib
from collections.abc import Callable


def done_by(place: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator for the declaration of a command, which has options and a docstring, but no body.

    Parameters
    ----------
    place : str
        ``module:function`` in ``fedddpm_app.cli``. A call of the command imports the module, and calls the function
        with the same arguments.
    """
    module, _, name = place.partition(":")

    def decorate(declared: Callable[..., None]) -> Callable[..., None]:
        declared.place = place  # type: ignore[attr-defined]

        @functools.wraps(declared)
        def command(**arguments: object) -> None:
            getattr(importlib.import_module(f"fedddpm_app.cli.{module}"), name)(**arguments)

        return command

    return decorate
