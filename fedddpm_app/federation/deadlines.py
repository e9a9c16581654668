"""The time limit of a message: the seconds for a client's work. This module imports no torch.

Where every client has a process of its own, all of them begin at once: the server waits for the time limit. In a
simulation with fewer processes than clients, a message waits for a free process. Its time limit counts from the start
of the work, so that a client that hangs does not use up the time of the clients behind it. The server then waits as
long as replies arrive within the time limit of each other: see ``exchange_about``.

Flower drops a message when its time to live is over, so a message lives a margin longer than the server may wait.
"""

import math
import time

from flwr.app import Message

TIME_LIMIT = "time-limit"  # in a message's config
_MARGIN_SECONDS = 60.0
_LEAD_SECONDS, _LEAD_SHARE = 5.0, 0.1  # a client stops earlier, so that its reason arrives while the server waits


def time_to_live(timeout: float, ahead: int = 0) -> float:
    """Return the time to live of a message, in seconds.

    Parameters
    ----------
    timeout : float
        Its time limit, in seconds.
    ahead : int
        The largest number of messages that may have to be answered before it.
    """
    return timeout * (1 + ahead) + _MARGIN_SECONDS


def time_limit(message: Message) -> float:
    """Return the time limit of a message, in seconds.

    A message without one, such as the first query, must be answered within its time to live, less the margin.
    """
    named = _named_limit(message)
    return _seconds_to_live(message) if named is None else named


def seconds_left(message: Message) -> float:
    """Return the seconds in which a client that starts to work now must answer; at most 0 if it is too late.

    The clocks of the server's and the client's hosts must agree.
    """
    named = _named_limit(message)
    limit = time_limit(message)
    lead = min(_LEAD_SECONDS, _LEAD_SHARE * limit)
    until_dropped = message.metadata.created_at + _seconds_to_live(message) - lead - time.time()
    return min(math.inf if named is None else named - lead, until_dropped)


def _named_limit(message: Message) -> float | None:
    """Return the time limit in a message's config; None if there is none."""
    limits = [record[TIME_LIMIT] for record in message.content.config_records.values() if TIME_LIMIT in record]
    return next((float(limit) for limit in limits if isinstance(limit, int | float)), None)


def _seconds_to_live(message: Message) -> float:
    """Return a message's time to live less the margin; all of it, if another program gave it less than the margin."""
    ttl = message.metadata.ttl
    return ttl - _MARGIN_SECONDS if ttl > _MARGIN_SECONDS else ttl
