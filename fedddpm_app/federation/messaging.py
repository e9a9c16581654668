"""Sending messages and taking their replies one by one, as they arrive."""

import itertools
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

_POLL_SECONDS = 0.1
Asked = TypeVar("Asked")


def exchange(grid: Grid, messages: Iterable[Message], timeout: float) -> Iterator[Message]:
    """Push messages and yield their replies in the order of arrival, holding none.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    messages : Iterable[Message]
        One or more per node.
    timeout : float
        Seconds after which the replies still missing are given up.
    """
    pending = set(grid.push_messages(messages))
    deadline = time.monotonic() + timeout
    while pending:
        for reply in grid.pull_messages(pending):
            pending.discard(reply.metadata.reply_to_message_id)
            yield reply
        if not pending or time.monotonic() > deadline:
            return
        time.sleep(_POLL_SECONDS)


def exchange_few(
    grid: Grid, requests: Iterable[tuple[Asked, Message]], timeout: float, in_flight: int
) -> Iterator[tuple[Asked, Message]]:
    """Push messages, at most ``in_flight`` at a time, and yield their replies in the order of arrival.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    requests : iterable
        Pairs of what a message is about and the message; taken one by one, when there is room.
    timeout : float
        Seconds after which the replies still missing are given up.
    in_flight : int
        Messages without a reply yet, >= 1.

    Yields
    ------
    tuple
        What the message was about, and its reply.
    """
    waiting = iter(requests)
    pending: dict[str, Asked] = {}
    deadline = time.monotonic() + timeout
    while True:
        for asked, message in itertools.islice(waiting, in_flight - len(pending)):
            pending |= {pushed: asked for pushed in grid.push_messages([message]) if pushed}
        if not pending or time.monotonic() > deadline:
            return
        replies = list(grid.pull_messages(set(pending)))
        for reply in replies:
            asked_id = reply.metadata.reply_to_message_id
            if asked_id in pending:
                yield pending.pop(asked_id), reply
        if not replies:
            time.sleep(_POLL_SECONDS)
