"""Requests that are sent one by one while others are under way, and their replies in the order of arrival.

``messaging.exchange`` is for messages that are known at once, and waits for all their replies. In a conversation, what
a client is asked next depends on replies of others, whose own work goes on: one client trains while another one votes.
"""

import time
import types
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from fedddpm_app.federation.flower_internals import ErrorCode, is_deployed
from fedddpm_app.federation.messages.actions import NO_RECORDS, ActionCall
from fedddpm_app.federation.messages.deadlines import patience
from fedddpm_app.federation.messages.messaging import (
    FIRST_POLL_SECONDS,
    PULLS,
    RESTARTED,
    Activations,
    Sent,
    longer,
    push,
)
from fedddpm_app.federation.messages.pulling import LAST_UPLOADS_SECONDS, Puller, error_of
from fedddpm_app.federation.messages.replies import Reply, ReplySpec
from fedddpm_app.training.actions import Value
from fedddpm_app.transport import Packed
from fedddpm_app.weights import Weights

_KEPT_SECONDS = 86_400.0  # Flower keeps a message that long while it waits here, or its reply while the server works


@dataclass(frozen=True, eq=False)
class Request:
    """An action that one client was asked for."""

    partition: int
    call: ActionCall
    spec: ReplySpec
    packed: Packed


@dataclass(frozen=True, eq=False)
class Answer:
    """The reply to a request, or an error in its place; not checked yet."""

    request: Request
    message: Message

    def accept(self) -> Reply:
        """Check the reply, and count its bytes; raise ``ReplyRefusedError`` if it cannot be used.

        The client is not asked for anything else before that. So what it has sent besides is late or refused, and its
        files are removed.
        """
        request = self.request
        try:
            return request.call.clients.accept(self.message, request.partition, request.spec)
        finally:
            request.call.transport.remove_unread(request.partition)


class Conversation:
    """Requests to clients, and their replies as they arrive.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    timeout : float
        Seconds after which a reply is given up, as in ``exchange_about``: in a deployment from the time that its
        message was sent, in a simulation from the last reply of any client. Time in which nobody calls ``receive``,
        up to a day, costs no reply.
    under_way : int, optional
        The largest number of messages without a reply; the others wait. None sends all messages at once.
    """

    def __init__(self, grid: Grid, timeout: float, under_way: int | None) -> None:
        self._grid, self._timeout, self._under_way = grid, timeout, under_way
        self._simulated = not is_deployed(grid.run)
        self._waiting: deque[tuple[Request, Message]] = deque()
        self._pending: dict[str, Sent[Request]] = {}
        self._began: dict[Request, float] = {}
        self._readers: Counter[int] = Counter()  # by the id of what was sent
        self._lost: deque[Answer] = deque()
        self._activations, self._puller = Activations(grid), Puller(grid)

    def ask(
        self,
        call: ActionCall,
        partitions: Sequence[int],
        weights: Weights,
        values: Mapping[int, Mapping[str, Value]] = types.MappingProxyType({}),
        like: Mapping[str, Weights] = NO_RECORDS,
        check: Callable[[Reply], None] | None = None,
        *,
        first: bool = False,
    ) -> None:
        """Ask clients for one action with the same weights.

        Parameters
        ----------
        call : ActionCall
            The action.
        partitions : sequence of int
            The clients.
        weights : Weights
            Sent to all of them, packed once.
        values : mapping of int to mapping
            By client, the values for it.
        like, check
            As of ``FederatedStrategy.ask_clients``.
        first : bool
            Send these messages before others that wait.
        """
        packed, spec = call.pack(weights), call.spec(like, check)
        self._readers[id(packed)] = len(partitions)
        requests = []
        for partition in partitions:
            (message,) = call.messages([partition], packed, values.get(partition, {}), kept=_KEPT_SECONDS)
            requests.append((Request(partition, call, spec, packed), message))
        if first:
            self._waiting.extendleft(reversed(requests))
        else:
            self._waiting.extend(requests)
        self._push()

    def receive(self) -> Answer:
        """Wait for the next reply; a missing one is an error in its place.

        Raises
        ------
        LookupError
            If no request is without a reply.
        ActorLostError
            In a simulation, if the process of an actor died.
        """
        began, pause = time.monotonic(), FIRST_POLL_SECONDS
        while self._pending or self._waiting or self._lost:
            self._push()
            if self._lost:
                return self._lost.popleft()
            for message_id in [*self._pending][:PULLS]:
                if answer := self._pull(message_id):
                    return answer
            for message_id, sent in [*self._pending.items()]:
                restarted = self._activations.of(sent.node) != sent.activated
                if not restarted and not self._is_over(sent.about, began):
                    continue
                if answer := self._pull(message_id):  # it may have been sent before
                    return answer
                if self._is_over(sent.about, began, LAST_UPLOADS_SECONDS * self._puller.is_on_its_way(message_id)):
                    return self._give_up(message_id, "it did not answer in time")
                if restarted and not self._puller.is_on_its_way(message_id):
                    return self._give_up(message_id, RESTARTED)
            pause = longer(pause)
            time.sleep(pause)
        raise LookupError("no request is without a reply")

    def _is_over(self, request: Request, began: float, more: float = 0.0) -> bool:
        """Return whether a reply is given up now; ``began``: the time since when somebody waits for any reply."""
        now = time.monotonic() - more
        return now > began + patience(self._timeout) if self._simulated else now > self._began[request] + self._timeout

    def _pull(self, message_id: str) -> Answer | None:
        sent = self._pending.pop(message_id)
        message = self._puller.pull_checked(message_id, sent.node)
        if message is None:
            self._pending[message_id] = sent  # at the end, so that others are pulled next
            return None
        return self._answered(sent.about, message)

    def _give_up(self, message_id: str, reason: str) -> Answer:
        sent = self._pending.pop(message_id)
        self._puller.give_up(message_id)
        return self._answered(sent.about, error_of(sent.node, ErrorCode.NODE_UNAVAILABLE, reason))

    def _answered(self, request: Request, message: Message) -> Answer:
        """Release what was sent after its last reader."""
        self._began.pop(request, None)
        key = id(request.packed)
        self._readers[key] -= 1
        if not self._readers[key]:
            del self._readers[key]
            request.call.transport.release(request.packed)
        return Answer(request, message)

    def _push(self) -> None:
        """Send what there is room for; a message that Flower rejects is answered by an error."""
        sent: list[tuple[Request, Message]] = []

        def next_request() -> tuple[Request, Message] | None:
            if not self._waiting:
                return None
            sent.append(self._waiting.popleft())
            return sent[-1]

        push(self._grid, next_request, self._pending, self._activations, self._under_way)
        pending, now = {each.about for each in self._pending.values()}, time.monotonic()
        for request, message in sent:
            self._began[request] = now
            if request not in pending:
                error = error_of(message.metadata.dst_node_id, ErrorCode.NODE_UNAVAILABLE, "it could not be sent")
                self._lost.append(self._answered(request, error))
