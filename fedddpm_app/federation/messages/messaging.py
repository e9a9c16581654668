"""Sends messages and yields their replies one by one, as they arrive.

Flower delivers a message to its node once. If the node then disconnects, Flower itself replies with an error, but only
if the node is disconnected at the moment of polling. For a node that reconnects before that moment, no reply would
arrive until the time limit. The time of a node's last activation shows this case: if the node was activated again after
a message was sent, the message is given up.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

from fedddpm_app.federation.flower_internals import ErrorCode, is_deployed
from fedddpm_app.federation.messages.deadlines import patience
from fedddpm_app.federation.messages.pulling import Puller, error_of

FIRST_POLL_SECONDS = 0.005
_LONGEST_POLL_SECONDS = 0.1
_POLL_GROWTH = 1.3
_NODES_SECONDS = 2.0  # between updates of the list of nodes
RESTARTED = "its node was restarted in the meantime"
PULLS = 8  # between two pauses: in a deployment, each one is a request to the SuperLink
About = TypeVar("About")


def exchange(
    grid: Grid, messages: Iterable[Message], timeout: float, under_way: int | None = None
) -> Iterator[Message]:
    """Push messages and yield their replies in the order of arrival, one in memory; see ``exchange_about``."""
    requests = ((message.metadata.dst_node_id, message) for message in messages)
    for _, reply in exchange_about(grid, lambda: next(requests, None), timeout, under_way):
        yield reply
        del reply


def exchange_about(
    grid: Grid,
    next_request: Callable[[], tuple[About, Message] | None],
    timeout: float,
    under_way: int | None = None,
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
        Seconds after which the replies still missing are given up. In a simulation, they are a client's time limit,
        and a client that hangs does not cost the replies of the clients behind it: the server waits anew after each
        reply, which made a process free, and also for the start of such a process.
    under_way : int, optional
        The largest number of messages without a reply: the next message is sent when a reply was consumed. A simulation
        then works in the order of the messages, and replies do not pile up. None sends all messages at once.

    Raises
    ------
    ActorLostError
        In a simulation, if the process of an actor died.
    """
    pending: dict[str, Sent[About]] = {}
    activations, puller = Activations(grid), Puller(grid)
    in_turn, pause = not is_deployed(grid.run), FIRST_POLL_SECONDS
    seconds = patience(timeout) if in_turn else timeout
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        push(grid, next_request, pending, activations, under_way)
        if not pending:
            return
        pause = longer(pause)
        for message_id in [*pending][:PULLS]:
            sent = pending.pop(message_id)
            reply = puller.pull_checked(message_id, sent.node)
            if reply is None:
                pending[message_id] = sent  # at the end, so that others are pulled next
                continue
            pause = FIRST_POLL_SECONDS
            yield sent.about, reply
            del reply
            if in_turn:
                deadline = time.monotonic() + seconds
            push(grid, next_request, pending, activations, under_way)
        for message_id in [key for key, sent in pending.items() if activations.of(sent.node) != sent.activated]:
            node = pending[message_id].node
            reply = puller.pull_checked(message_id, node)  # it may have been sent before
            if reply is None and not puller.is_on_its_way(message_id):
                reply = error_of(node, ErrorCode.NODE_UNAVAILABLE, RESTARTED)
            if reply is not None:
                yield pending.pop(message_id).about, reply
                del reply
        if pending:
            time.sleep(pause)
    for message_id, reply in puller.last({message_id: sent.node for message_id, sent in pending.items()}):
        yield pending[message_id].about, reply
        del reply


def longer(pause: float) -> float:
    """Return the seconds of the pause between two polls that follows on ``pause``."""
    return min(_LONGEST_POLL_SECONDS, pause * _POLL_GROWTH)


@dataclass(frozen=True)
class Sent(Generic[About]):
    """A message without a reply so far: its subject, its node, and the time of that node's last activation."""

    about: About
    node: int
    activated: str


class Activations:
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


def push(
    grid: Grid,
    next_request: Callable[[], tuple[About, Message] | None],
    pending: dict[str, Sent[About]],
    activations: Activations,
    under_way: int | None,
) -> None:
    """Push messages until ``under_way`` are pending, or all are sent; a message that Flower rejects gets no reply."""
    while under_way is None or len(pending) < under_way:
        request = next_request()
        if request is None:
            return
        about, message = request
        node = message.metadata.dst_node_id
        sent = Sent(about, node, activations.of(node))
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
