"""The time limit of a message, which Flower carries as its time to live. This module imports no torch.

Flower drops a message when its time to live is over, so a message lives a margin longer than the server waits for its
reply. The client computes the server's time limit from the time to live.
"""

import time

from flwr.app import Message

_MARGIN_SECONDS = 60.0
_LEAD_SECONDS, _LEAD_SHARE = 5.0, 0.1  # a client stops earlier, so that its reason arrives while the server waits


def time_to_live(timeout: float) -> float:
    """Return the time to live, in seconds, of a message whose reply is awaited for ``timeout`` seconds."""
    return timeout + _MARGIN_SECONDS


def time_limit(message: Message) -> float:
    """Return the seconds for which the server waits for the reply to a message, counted from its creation.

    A message that this app did not create may live less long than the margin; the limit is then its time to live.
    """
    ttl = message.metadata.ttl
    return ttl - _MARGIN_SECONDS if ttl > _MARGIN_SECONDS else ttl


def seconds_left(message: Message) -> float:
    """Return the seconds in which a client must answer a message; at most 0 if it is too late.

    The clocks of the server's and the client's hosts must agree.
    """
    limit = time_limit(message)
    return message.metadata.created_at + limit - min(_LEAD_SECONDS, _LEAD_SHARE * limit) - time.time()
