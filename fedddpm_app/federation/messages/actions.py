"""The server half of client actions: one place makes the messages, and one place specifies the replies."""

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedddpm_app.config import WireDtype
from fedddpm_app.federation.clients import Clients
from fedddpm_app.federation.messages.messaging import exchange
from fedddpm_app.federation.messages.records import ACTION, ARRAYS, NUM_EXAMPLES, VALUES
from fedddpm_app.federation.messages.replies import GONE, Reply, ReplySpec
from fedddpm_app.federation.messages.streaming import ReplyStream
from fedddpm_app.training.actions import ClientAction, Value
from fedddpm_app.transport import Packed, Transport
from fedddpm_app.weights import Weights

NO_RECORDS: Mapping[str, Weights] = types.MappingProxyType({})
NO_VALUES: Mapping[str, Value] = types.MappingProxyType({})


@dataclass(frozen=True)
class ActionCall:
    """One client action of a strategy, ready to be sent.

    Parameters
    ----------
    name : str
        The name in ``client_actions``.
    action : ClientAction
        The declaration.
    grid : Grid
        Flower's connection to the nodes.
    clients : Clients
        Addresses the messages.
    transport : Transport
        Carries the weights.
    server_round : int
        From 1; 0 before the rounds.
    timeout : float
        Seconds to wait for replies.
    """

    name: str
    action: ClientAction
    grid: Grid
    clients: Clients
    transport: Transport
    server_round: int
    timeout: float

    def pack(self, weights: Weights) -> Packed:
        """Return weights as a record; pass it to ``Transport.release`` when all replies have arrived."""
        return self.transport.pack(weights, self._dtype)

    @property
    def _dtype(self) -> WireDtype | None:
        """The encoding of the weights both ways; None for the run's ``wire-dtype``."""
        return "fp32" if self.action.exact else None

    def messages(
        self,
        partitions: Sequence[int],
        packed: Packed,
        values: Mapping[str, Value] = NO_VALUES,
        own: Mapping[int, Mapping[str, Value]] = types.MappingProxyType({}),
        kept: float = 0.0,
    ) -> list[Message]:
        """Return one message for each partition; its record of weights also says how the answer is to be packed.

        ``own`` has further values, of one partition each. ``kept``: see ``Clients.address``.

        Raises
        ------
        RuntimeError
            If the action sends what is a client's own, and a newcomer holds a partition: see ``Clients.withheld_from``.
        """
        if self.action.sends_own and (strangers := self.clients.participants.newcomers & {*partitions}):
            raise RuntimeError(f'"{self.name}" would send clients {sorted(strangers)} their own to newcomers')
        message_type, records = ACTION + self.name, {ARRAYS: packed}
        messages = self.clients.address(
            partitions, message_type, records, self.server_round, self.timeout, with_states=True, kept=kept
        )
        partition_at = {self.clients.participants.node_of[partition]: partition for partition in partitions}
        for message in messages:  # they share their records, but each has its own content
            given: Mapping[str, Value] = {**values, **own.get(partition_at[message.metadata.dst_node_id], {})}
            if given:
                message.content = RecordDict({**message.content, VALUES: ConfigRecord(dict(given))})
        return messages

    def spec(self, like: Mapping[str, Weights] = NO_RECORDS, check: Callable[[Reply], None] | None = None) -> ReplySpec:
        """Return the specification of a reply; ``like`` has a reference for each declared record.

        Raises
        ------
        KeyError
            If a declared record has no reference.
        """
        missing = [record for record in self.action.records if record not in like]
        if missing:
            raise KeyError(f'the action "{self.name}" returns {missing[0]!r}: give a reference for it in ``like``.')
        return ReplySpec(
            {record: self.transport.expect(like[record], dtype=self._dtype) for record in self.action.records},
            [metric for metric in self.action.metrics if metric != NUM_EXAMPLES],
            check,
            lists=self.action.lists,
            counts_examples=NUM_EXAMPLES in self.action.metrics,
            server_round=self.server_round,
        )

    def ask(
        self,
        partitions: Sequence[int],
        weights: Weights,
        values: Mapping[str, Value],
        likes: Mapping[int, Mapping[str, Weights]],
        check: Callable[[Reply], None] | None,
        own: Mapping[int, Mapping[str, Value]] = types.MappingProxyType({}),
    ) -> ReplyStream:
        """Send the action to each partition once; see ``FederatedStrategy.ask_clients``.

        ``likes`` has the references of each partition, which may be of different shapes, and ``own`` its further
        values.
        """
        sent = {ARRAYS: weights} if weights else {}
        distinct = {id(like): like for like in likes.values()}  # a layout takes 100 kB for a large model
        known = {key: self.spec({**sent, **like}, check) for key, like in distinct.items()}
        specs = {partition: known[id(likes[partition])] for partition in partitions}
        first = next(iter(specs.values()), ReplySpec(server_round=self.server_round))
        left_out = self.left_out(partitions)
        asked = [partition for partition in partitions if partition not in left_out]
        stream = ReplyStream(self.clients, self._exchange(asked, weights, values, own), asked, self.name, first, specs)
        stream.refused |= left_out
        return stream

    def left_out(self, partitions: Sequence[int]) -> dict[int, str]:
        """Return the partitions that cannot be asked, with the reasons.

        No node of theirs was connected in this process of the run, or the action sends what is a client's own, and
        newcomers hold them.
        """
        gone = dict.fromkeys(sorted({*partitions} - self.clients.participants.node_of.keys()), GONE)
        withheld = self.clients.withheld_from(partitions, self.name) if self.action.sends_own else {}
        return gone | withheld

    def _exchange(
        self,
        partitions: Sequence[int],
        weights: Weights,
        values: Mapping[str, Value],
        own: Mapping[int, Mapping[str, Value]],
    ) -> Iterator[Message]:
        """Send the messages, yield the replies as they arrive, and release the weights after the last one."""
        packed = self.pack(weights)
        messages = self.messages(partitions, packed, values, own)
        try:
            yield from exchange(self.grid, messages, self.timeout, self.clients.participants.under_way)
        finally:
            self.transport.release(packed)
