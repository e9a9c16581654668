"""Sending messages and taking their replies one by one, as they arrive.

Flower gives a message to its node once. If the node then goes away, it answers in the node's place, but only while
the node is away at the moment of asking: of one that is back sooner nothing would come until the time limit. So
nodes that were activated anew since a message was sent are told by that, and the message is given up.
"""

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
_LOOK_SECONDS = 2.0  # between looks at the nodes
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
            set_source(reply, node)
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
    pending: dict[str, _Sent[About]] = {}
    activations = _Activations(grid)
    deadline, pause = time.monotonic() + timeout, _FIRST_POLL_SECONDS
    while True:
        _push(grid, next_request, pending, activations, under_way)
        if not pending or time.monotonic() > deadline:
            return
        asked = list(pending)[:_PULL_AT_ONCE]
        arrived = list(grid.pull_messages(set(asked)))
        for message_id in asked:  # others are asked for next
            pending[message_id] = pending.pop(message_id)
        pause = _FIRST_POLL_SECONDS if arrived else min(_LONGEST_POLL_SECONDS, pause * _POLL_GROWTH)
        while arrived:
            reply = arrived.pop(0)
            yield pending.pop(reply.metadata.reply_to_message_id).about, reply
            del reply
            _push(grid, next_request, pending, activations, under_way)
        for message_id in [key for key, sent in pending.items() if activations.of(sent.node) != sent.activated]:
            sent = pending.pop(message_id)
            yield sent.about, _lost(sent.node)
        if pending:
            time.sleep(pause)


@dataclass(frozen=True)
class _Sent(Generic[About]):
    """A message without a reply so far: what it is about, to which node it went, and when that was activated."""

    about: About
    node: int
    activated: str


class _Activations:
    """When the nodes were activated, looked up every few seconds."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._known: dict[int, str] = {}
        self._looked = float("-inf")

    def of(self, node: int) -> str:
        """Return when a node was last activated; of one that is gone as it was when it was there."""
        if time.monotonic() - self._looked > _LOOK_SECONDS:
            self._known |= {info.node_id: info.last_activated_at for info in self._grid.get_nodes()}
            self._looked = time.monotonic()
        return self._known.get(node, "")


def _lost(node: int) -> Message:
    """Return Flower's word for a node that is not there, as from that node."""
    reply = Message(
        Error(ErrorCode.NODE_UNAVAILABLE, "its node was started anew meanwhile"),
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
    """Push messages until ``under_way`` are pending, or all; one that Flower does not take has no reply to come."""
    while under_way is None or len(pending) < under_way:
        request = next_request()
        if request is None:
            return
        about, message = request
        node = message.metadata.dst_node_id
        sent = _Sent(about, node, activations.of(node))
        pending.update({pushed: sent for pushed in grid.push_messages([message]) if pushed})


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
