"""The time limit of a message: the seconds for a client's work. This module imports no torch.

In a deployment, all clients begin at once, and the server waits for the time limit. In a simulation, a message may wait
for a free process, and for the start of a process after a death or a hang. There, the time limit counts from the start
of the work: a client that hangs does not use up the time of the clients behind it. The server then waits as long as
replies follow each other, see ``exchange``.

Flower drops a message when its time to live is over, so a message lives a margin longer than the server may wait.
"""

import time

from flwr.app import Message

TIME_LIMIT = "time-limit"  # in a message's config
START_SECONDS = 300.0  # for a process to start: seconds of imports, but Ray gives its processes a low priority
_MARGIN_SECONDS = 60.0
_LEAD_SECONDS, _LEAD_SHARE = 5.0, 0.1  # a client stops earlier, so that its reason arrives while the server waits


def time_to_live(timeout: float, queue: int = 0) -> float:
    """Return the time to live of a message, in seconds.

    Parameters
    ----------
    timeout : float
        Its time limit, in seconds.
    queue : int
        In a simulation, the largest number of messages that one process answers, this one included; 0 otherwise.
    """
    return (patience(timeout) * queue if queue else timeout) + _MARGIN_SECONDS


def patience(timeout: float) -> float:
    """Return the seconds in which a simulation's process answers or stops a client, even if it has to start first."""
    return timeout + START_SECONDS


def time_limit(message: Message) -> float:
    """Return the time limit of a message, in seconds; without one, as in the first query, its time to live counts."""
    named = _named_limit(message)
    return _seconds_to_live(message) if named is None else named


def seconds_left(message: Message) -> float:
    """Return the seconds in which a message must be answered; at most 0 if it is too late.

    The clocks of the server's and the client's hosts must agree.
    """
    lives = _seconds_to_live(message) if _named_limit(message) is None else message.metadata.ttl
    return message.metadata.created_at + lives - _lead(message) - time.time()


def seconds_to_work(message: Message) -> float:
    """Return the seconds in which a client must answer that starts to work now."""
    return min(time_limit(message) - _lead(message), seconds_left(message))


def _lead(message: Message) -> float:
    return min(_LEAD_SECONDS, _LEAD_SHARE * time_limit(message))


def _named_limit(message: Message) -> float | None:
    """Return the time limit in a message's config; None if there is none."""
    limits = [record[TIME_LIMIT] for record in message.content.config_records.values() if TIME_LIMIT in record]
    return next((float(limit) for limit in limits if isinstance(limit, int | float)), None)


def _seconds_to_live(message: Message) -> float:
    """Return a message's time to live less the margin; all of it, if another program gave it less than the margin."""
    ttl = message.metadata.ttl
    return ttl - _MARGIN_SECONDS if ttl > _MARGIN_SECONDS else ttl
