"""Sending messages and taking their replies one by one, as they arrive."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

_FIRST_POLL_SECONDS = 0.005
_LONGEST_POLL_SECONDS = 0.1
_POLL_GROWTH = 1.3
_PULL_AT_ONCE = 8  # a deployment's pull takes every reply that is ready into memory
About = TypeVar("About")


def exchange(
    grid: Grid, messages: Iterable[Message], timeout: float, under_way: int | None = None
) -> Iterator[Message]:
    """Push messages and yield their replies in the order of arrival, holding few; see ``exchange_about``.

    An error that the SuperLink reports of a node that is gone bears the node that was asked.
    """
    requests = ((message.metadata.dst_node_id, message) for message in messages)
    for node, reply in exchange_about(grid, lambda: next(requests, None), timeout, under_way):
        if reply.has_error():
            reply.metadata.__dict__["_src_node_id"] = node
        yield reply
        del reply


def exchange_about(
    grid: Grid,
    next_request: Callable[[], tuple[About, Message] | None],
    timeout: float,
    under_way: int | None = None,
) -> Iterator[tuple[About, Message]]:
    """Push messages and yield their replies in the order of arrival, each with what its message was about.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    next_request : callable
        Returns what the next message is about and the message, when there is room for it; None where there is none,
        or none yet: it is asked again after each reply.
    timeout : float
        Seconds after which the replies still missing are given up.
    under_way : int, optional
        So many at a time: the next message goes out when a reply was taken. A simulation then works in the order of
        the messages, and does not pile up replies faster than they are taken. None sends all at once.
    """
    pending: dict[str, About] = {}
    deadline, pause = time.monotonic() + timeout, _FIRST_POLL_SECONDS
    while True:
        _push(grid, next_request, pending, under_way)
        if not pending or time.monotonic() > deadline:
            return
        asked = list(pending)[:_PULL_AT_ONCE]
        arrived = list(grid.pull_messages(set(asked)))
        for message_id in asked:  # others are asked for next
            pending[message_id] = pending.pop(message_id)
        pause = _FIRST_POLL_SECONDS if arrived else min(_LONGEST_POLL_SECONDS, pause * _POLL_GROWTH)
        while arrived:
            reply = arrived.pop(0)
            yield pending.pop(reply.metadata.reply_to_message_id), reply
            del reply
            _push(grid, next_request, pending, under_way)
        time.sleep(pause)


def _push(
    grid: Grid,
    next_request: Callable[[], tuple[About, Message] | None],
    pending: dict[str, About],
    under_way: int | None,
) -> None:
    """Push messages until ``under_way`` are pending, or all; one that Flower does not take has no reply to come."""
    while under_way is None or len(pending) < under_way:
        request = next_request()
        if request is None:
            return
        about, message = request
        pending.update({pushed: about for pushed in grid.push_messages([message]) if pushed})


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
