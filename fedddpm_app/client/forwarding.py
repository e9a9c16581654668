"""The ClientApp that Flower loads: it has the messages answered by the app that a function of a named module creates.

It imports little. A Ray actor gets only this object, with each message, and so does not import torch.
"""

import importlib
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, NoReturn

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedddpm_app.client.process import process_of
from fedddpm_app.disk.private import private_umask

Call = Callable[[Message, Context], Message]


class ForwardingClientApp(ClientApp):
    """A ClientApp whose messages another ClientApp answers: in a Ray actor in a child process, elsewhere right here.

    Parameters
    ----------
    app : str
        The function that creates the other app, as "module:function"; it takes no arguments. The module may be the one
        of this object.
    """

    def __init__(self, app: str) -> None:
        super().__init__()
        self._app = app

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message; at a site, a failure says to the server what may leave the site."""
        if _is_in_actor():
            return process_of(self._app).answer(message, context)
        try:
            with private_umask():
                return call_app(_here(self._app), message, context)
        except Exception as error:
            from fedddpm_app.client.site_failures import failure_at_site  # it imports torch

            reply = failure_at_site(error, message, context)
            if reply is None:
                raise
            return reply

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(f'this ClientApp only forwards: register functions with the app that "{self._app}" creates.')

    train = evaluate = query = lifespan = _refuse


def create_app(app: str) -> ClientApp:
    """Create the ClientApp that a "module:function" returns.

    Raises
    ------
    ImportError, AttributeError, TypeError
        If the name does not give a ClientApp.
    """
    module, _, function = app.partition(":")
    created = getattr(importlib.import_module(module), function)()
    if not isinstance(created, ClientApp):
        raise TypeError(f'"{app}" returned {type(created).__name__}, but must create a ClientApp.')
    return created


def call_app(app: Call, message: Message, context: Context) -> Message:
    """Return the app's reply to a message; ``TypeError`` if it is not a ``Message``."""
    reply = app(message, context)
    if not isinstance(reply, Message):
        raise TypeError(f"its ClientApp returned {type(reply).__name__}, not a Message")
    return reply


@cache
def _here(app: str) -> ClientApp:
    return create_app(app)


def _is_in_actor() -> bool:
    """Return whether this process is a Ray actor; Ray is not imported for this."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None
