"""Sends messages and yields their replies one by one, as they arrive.

Flower delivers a message to its node once. If the node then disconnects, Flower itself replies with an error, but only
if the node is disconnected at the moment of polling. For a node that reconnects before that moment, no reply would
arrive until the time limit. The time of a node's last activation shows this case: if the node was activated again after
a message was sent, the message is given up.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid

from fedddpm_app.federation.flower_internals import ErrorCode, set_source

_FIRST_POLL_SECONDS = 0.005
_LONGEST_POLL_SECONDS = 0.1
_POLL_GROWTH = 1.3
_NODES_SECONDS = 2.0  # between updates of the list of nodes
_PULL_AT_ONCE = 8  # in a deployment, a pull loads every reply that is ready into memory
About = TypeVar("About")


def exchange(
    grid: Grid, messages: Iterable[Message], timeout: float, under_way: int | None = None
) -> Iterator[Message]:
    """Push messages and yield their replies in the order of arrival, with few in memory; see ``exchange_about``.

    The source of a reply is the node that the message went to, whatever the reply says.
    """
    requests = ((message.metadata.dst_node_id, message) for message in messages)
    in_turn = under_way is not None
    for node, reply in exchange_about(grid, lambda: next(requests, None), timeout, under_way, in_turn=in_turn):
        set_source(reply, node)
        yield reply
        del reply


def exchange_about(
    grid: Grid,
    next_request: Callable[[], tuple[About, Message] | None],
    timeout: float,
    under_way: int | None = None,
    *,
    in_turn: bool = False,
) -> Iterator[tuple[About, Message]]:
    """Push messages and yield their replies in the order of arrival, each with the subject of its message.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    next_request : callable
        Called when there is room for a message; returns the subject of the next message, and the message. It returns
        None if there is none, or none yet: it is called again after each reply.
    timeout : float
        Seconds after which the replies still missing are given up.
    under_way : int, optional
        The largest number of messages without a reply: the next message is sent when a reply was consumed. A simulation
        then works in the order of the messages, and replies do not pile up. None sends all messages at once.
    in_turn : bool
        Whether messages wait for a free process. The timeout is then counted anew from each reply: with it a process
        is free, and within the timeout the next one answers or is stopped. A client that hangs therefore costs its own
        reply, and not those of the clients behind it.
    """
    pending: dict[str, _Sent[About]] = {}
    activations = _Activations(grid)
    wait, pause = _Wait(timeout), _FIRST_POLL_SECONDS
    while True:
        if not wait.is_over():
            _push(grid, next_request, pending, activations, under_way)
        if not pending or wait.ends(len(pending)):
            return
        polled = list(pending)[:_PULL_AT_ONCE]
        arrived = list(grid.pull_messages(set(polled)))
        if arrived and in_turn:
            wait = _Wait(timeout)
        for message_id in polled:  # move to the end, so that others are polled next
            pending[message_id] = pending.pop(message_id)
        pause = _FIRST_POLL_SECONDS if arrived else min(_LONGEST_POLL_SECONDS, pause * _POLL_GROWTH)
        while arrived:
            reply = arrived.pop(0)
            sent = pending.pop(reply.metadata.reply_to_message_id, None)
            if sent is not None:  # else it is a second reply to the same message
                yield sent.about, reply
            del reply
            if not wait.is_over():
                _push(grid, next_request, pending, activations, under_way)
        for message_id in [key for key, sent in pending.items() if activations.of(sent.node) != sent.activated]:
            sent = pending.pop(message_id)
            yield sent.about, _lost(sent.node)
        if pending:
            time.sleep(pause)


@dataclass(frozen=True)
class _Sent(Generic[About]):
    """A message without a reply so far: its subject, its node, and the time of that node's last activation."""

    about: About
    node: int
    activated: str


class _Wait:
    """The time for which replies are awaited; after it, each message is polled once more: its reply may have arrived.

    Parameters
    ----------
    seconds : float
        The time.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._polls_left: int | None = None

    def is_over(self) -> bool:
        """Return whether the time is over."""
        return time.monotonic() > self._end

    def ends(self, num_pending: int) -> bool:
        """Return whether the time is over and all pending messages were polled since; called before each poll."""
        if not self.is_over():
            return False
        if self._polls_left is None:
            self._polls_left = math.ceil(num_pending / _PULL_AT_ONCE)
        self._polls_left -= 1
        return self._polls_left < 0


class _Activations:
    """The times of the nodes' last activations, updated every few seconds."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._known: dict[int, str] = {}
        self._updated = float("-inf")

    def of(self, node: int) -> str:
        """Return the time of a node's last activation; for a disconnected node, the last known one."""
        if time.monotonic() - self._updated > _NODES_SECONDS:
            self._known |= {info.node_id: info.last_activated_at for info in self._grid.get_nodes()}
            self._updated = time.monotonic()
        return self._known.get(node, "")


def _lost(node: int) -> Message:
    """Return Flower's error for an unavailable node, with that node as its source."""
    reply = Message(
        Error(ErrorCode.NODE_UNAVAILABLE, "its node was restarted in the meantime"),
        reply_to=Message(RecordDict(), dst_node_id=node, message_type="query"),
    )
    set_source(reply, node)
    return reply


def _push(
    grid: Grid,
    next_request: Callable[[], tuple[About, Message] | None],
    pending: dict[str, _Sent[About]],
    activations: _Activations,
    under_way: int | None,
) -> None:
    """Push messages until ``under_way`` are pending, or all are sent; a message that Flower rejects gets no reply."""
    while under_way is None or len(pending) < under_way:
        request = next_request()
        if request is None:
            return
        about, message = request
        node = message.metadata.dst_node_id
        sent = _Sent(about, node, activations.of(node))
        pending.update({pushed: sent for pushed in grid.push_messages([message]) if pushed})


class StreamingGrid:
    """A ``Grid`` whose ``send_and_receive`` stores no replies: Flower's loop passes them on as they arrive.

    Parameters
    ----------
    grid : Grid
        Handles all other calls.
    under_way : int, optional
        As in ``exchange``.
    """

    def __init__(self, grid: Grid, under_way: int | None) -> None:
        self._grid = grid
        self._under_way = under_way

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Return an iterator that pushes the messages and yields their replies."""
        return exchange(self._grid, messages, float("inf") if timeout is None else timeout, self._under_way)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)
