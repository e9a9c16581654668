"""Pulls replies one by one, so that a reply that cannot be read, or does not end, costs its own client alone.

In a deployment, Flower decodes the objects of a reply when it is pulled. These are a client's bytes, and a malformed
object raises: such a reply becomes an error of its node. A reply is there before all its objects are: Flower then waits
for them, minutes if the upload has stopped and hours if it trickles. A pull therefore has a thread of its own there.
Few go on beside each other, because their replies are in memory until their turn.
"""

import math
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait

from flwr.app import Error, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedddpm_app.config import one_line
from fedddpm_app.federation.errors import ActorLostError
from fedddpm_app.federation.flower_internals import UNREADABLE, ErrorCode, is_deployed, set_source, wait_for_stop
from fedddpm_app.federation.messages.reasons import DEAD_ACTOR, is_dead_actor

_FIRST_WAIT_SECONDS = 1.0  # until the server turns to the next reply
_STOP_SECONDS = 15.0  # a stop of the whole run ends its actors first, and is then the reason
_AT_THE_END_SECONDS = 1.0  # of pulls, where each one may be the work of a client
LAST_UPLOADS_SECONDS = 30.0  # for the rest of a reply that is on its way
_AT_A_TIME = 2  # pulls that go on beside each other: their replies are in memory
_SLOW_SECONDS = 20.0  # a pull that takes longer does not count among these: others then go on beside it


class Pull:
    """A pull in a thread of its own: its reply, or None, and the time of its start."""

    def __init__(self) -> None:
        self.found: Future[Message | None] = Future()
        self._began = time.monotonic()

    @property
    def is_slow(self) -> bool:
        """Whether others go on beside it."""
        return time.monotonic() - self._began > _SLOW_SECONDS


class Puller:
    """Pulls the replies to messages.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._in_threads = is_deployed(grid.run)
        self._on_their_way: dict[str, Pull] = {}
        self._in_line: set[str] = set()

    def pull(self, message_id: str, node: int) -> Message | None:
        """Return the reply of a node to one message; None if there is none yet, or not all of it.

        Its source is the node that the message went to, whatever the reply says. A reply that Flower cannot decode, or
        that has no records, becomes an error of that node.
        """
        if not self._in_threads:
            return _pull(self._grid, message_id, node)
        seconds, under_way = 0.0, self._on_their_way.get(message_id)
        if under_way is None:
            if sum(not each.is_slow for each in self._on_their_way.values()) >= _AT_A_TIME:
                self._in_line.add(message_id)
                return None
            self._in_line.discard(message_id)
            seconds, under_way = _FIRST_WAIT_SECONDS, Pull()
            arguments = (under_way.found, self._grid, message_id, node)
            threading.Thread(target=_pull_into, args=arguments, daemon=True).start()
            self._on_their_way[message_id] = under_way
        if not wait([under_way.found], seconds).done:
            return None
        return self._on_their_way.pop(message_id).found.result()

    def pull_checked(self, message_id: str, node: int) -> Message | None:
        """Return the reply as ``pull``; raise ``ActorLostError`` if a simulation's actor died instead."""
        reply = self.pull(message_id, node)
        if reply is not None and reply.has_error() and not self._in_threads and is_dead_actor(reply.error):
            wait_for_stop(_STOP_SECONDS)
            raise ActorLostError(DEAD_ACTOR)
        return reply

    def is_on_its_way(self, message_id: str) -> bool:
        """Return whether a part of a reply is there, or may be."""
        return message_id in self._on_their_way or message_id in self._in_line

    def give_up(self, message_id: str) -> None:
        """Keep no reply to a message, whenever its upload ends."""
        self._on_their_way.pop(message_id, None)
        self._in_line.discard(message_id)

    def last(self, nodes: Mapping[str, int]) -> Iterator[tuple[str, Message]]:
        """Yield the replies that are there when time is over, each with the id of its message.

        The time is bounded: in a simulation and in-process, a pull may be the work of a client; elsewhere, uploads that
        have begun may not end.

        Parameters
        ----------
        nodes : mapping of str to int
            The nodes of the messages without a reply, by the ids of the messages.
        """
        left, missing, deadline = _AT_THE_END_SECONDS, dict(nodes), math.inf
        while missing:
            is_over = time.monotonic() > deadline
            for message_id, node in [*missing.items()]:
                began = time.monotonic()
                reply = self.pull_checked(message_id, node)
                left -= time.monotonic() - began
                if reply is not None or is_over or not self.is_on_its_way(message_id):
                    del missing[message_id]
                if reply is not None:
                    yield message_id, reply
                    del reply
                if left < 0 and not self._in_threads:
                    return
            deadline = min(deadline, time.monotonic() + LAST_UPLOADS_SECONDS)
            under_way = [each.found for each in self._on_their_way.values()]
            seconds = min(deadline - time.monotonic(), _FIRST_WAIT_SECONDS)  # others may be in line behind slow ones
            wait(under_way, max(0.0, seconds), FIRST_COMPLETED)


def error_of(node: int, code: int, reason: str) -> Message:
    """Return an error in place of a reply, with a node as its source."""
    request = Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY)
    reply = Message(Error(code, reason), reply_to=request)
    set_source(reply, node)
    return reply


def _pull_into(found: Future[Message | None], grid: Grid, message_id: str, node: int) -> None:
    try:
        found.set_result(_pull(grid, message_id, node))
    except BaseException as error:  # noqa: BLE001 - raised again where the result is read
        found.set_exception(error)


def _pull(grid: Grid, message_id: str, node: int) -> Message | None:
    try:
        reply = next(iter(grid.pull_messages({message_id})), None)
        if reply is None:
            return None
        if not reply.has_error() and not isinstance(reply.content, RecordDict):
            raise TypeError(f"its content is not a RecordDict: {type(reply.content).__name__}")
    except UNREADABLE as error:
        reason = one_line(f"its reply cannot be decoded: {type(error).__name__}: {error}")
        return error_of(node, ErrorCode.UNKNOWN, reason)
    set_source(reply, node)
    return reply
