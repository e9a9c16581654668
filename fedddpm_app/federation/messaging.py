"""Sending messages and taking their replies one by one, as they arrive."""

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

_FIRST_POLL_SECONDS = 0.005
_LONGEST_POLL_SECONDS = 0.1
_POLL_GROWTH = 1.3
About = TypeVar("About")


def exchange(
    grid: Grid, messages: Iterable[Message], timeout: float, under_way: int | None = None
) -> Iterator[Message]:
    """Push messages and yield their replies in the order of arrival, holding none; see ``exchange_about``."""
    for _, reply in exchange_about(grid, ((None, message) for message in messages), timeout, under_way):
        yield reply
        del reply


def exchange_about(
    grid: Grid, requests: Iterable[tuple[About, Message]], timeout: float, under_way: int | None = None
) -> Iterator[tuple[About, Message]]:
    """Push messages and yield their replies in the order of arrival, each with what its message was about.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    requests : iterable
        Pairs of what a message is about and the message, in the order that they should be worked on; each is taken
        when there is room for it.
    timeout : float
        Seconds after which the replies still missing are given up.
    under_way : int, optional
        So many at a time: the next message goes out when a reply was taken. A simulation then works in the order of
        the messages, and does not pile up replies faster than they are taken. None sends all at once.
    """
    waiting = iter(requests)
    pending: dict[str, About] = {}
    deadline, pause = time.monotonic() + timeout, _FIRST_POLL_SECONDS
    while True:
        _push(grid, waiting, pending, under_way)
        if not pending or time.monotonic() > deadline:
            return
        arrived = list(grid.pull_messages(set(pending)))
        pause = _FIRST_POLL_SECONDS if arrived else min(_LONGEST_POLL_SECONDS, pause * _POLL_GROWTH)
        while arrived:
            reply = arrived.pop(0)
            yield pending.pop(reply.metadata.reply_to_message_id), reply
            del reply
            _push(grid, waiting, pending, under_way)
        time.sleep(pause)


def _push(
    grid: Grid, waiting: Iterator[tuple[About, Message]], pending: dict[str, About], under_way: int | None
) -> None:
    """Push messages until ``under_way`` are pending, or all; one that Flower does not take has no reply to come."""
    while under_way is None or len(pending) < under_way:
        for about, message in waiting:
            pending.update({pushed: about for pushed in grid.push_messages([message]) if pushed})
            break
        else:
            return


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
