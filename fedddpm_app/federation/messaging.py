"""Sending messages and taking their replies one by one, as they arrive."""

import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

_FIRST_POLL_SECONDS = 0.005
_LONGEST_POLL_SECONDS = 0.1
_POLL_GROWTH = 1.3


def exchange(
    grid: Grid, messages: Iterable[Message], timeout: float, under_way: int | None = None
) -> Iterator[Message]:
    """Push messages and yield their replies in the order of arrival, holding none.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    messages : Iterable[Message]
        One or more per node, in the order that they should be worked on.
    timeout : float
        Seconds after which the replies still missing are given up.
    under_way : int, optional
        So many at a time: the next message goes out when a reply was taken. A simulation then works in the order of
        the messages, and does not pile up replies faster than they are taken. None sends all at once.
    """
    waiting = iter(messages)
    pending = set(grid.push_messages(list(itertools.islice(waiting, under_way))))
    deadline, pause = time.monotonic() + timeout, _FIRST_POLL_SECONDS
    while pending:
        arrived = list(grid.pull_messages(pending))
        while arrived:
            reply = arrived.pop(0)
            pending.discard(reply.metadata.reply_to_message_id)
            pending |= set(grid.push_messages(list(itertools.islice(waiting, 1))))
            pause = _FIRST_POLL_SECONDS
            yield reply
            del reply
        if not pending or time.monotonic() > deadline:
            return
        time.sleep(pause)
        pause = min(_LONGEST_POLL_SECONDS, pause * _POLL_GROWTH)


class StreamingGrid:
    """A ``Grid`` whose ``send_and_receive`` holds no replies: Flower's loop hands them on as they arrive.

    Parameters
    ----------
    grid : Grid
        Does everything else.
    under_way : int, optional
        As of ``exchange``.
    """

    def __init__(self, grid: Grid, under_way: int | None) -> None:
        self._grid = grid
        self._under_way = under_way

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Return an iterator that pushes the messages and yields their replies."""
        return exchange(self._grid, messages, float("inf") if timeout is None else timeout, self._under_way)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)
