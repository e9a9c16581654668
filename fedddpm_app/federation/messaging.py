"""Sending messages and taking their replies one by one, as they arrive."""

import time
from collections.abc import Iterable, Iterator

from flwr.app import Message
from flwr.serverapp import Grid

_POLL_SECONDS = 0.1


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
