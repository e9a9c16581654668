"""The run's clients: who is written to, and whose reply is taken."""

import types
from collections.abc import Callable, Iterable, Mapping, Sequence

from flwr.app import ArrayRecord, Message

from fedddpm_app.federation.accounting import Accounting
from fedddpm_app.federation.participants import Participants
from fedddpm_app.federation.records import payload_bytes, request
from fedddpm_app.federation.replies import Reply, ReplyRefusedError, accept_reply
from fedddpm_app.progress import logger
from fedddpm_app.weights import Weights

_TTL_MARGIN_SECONDS = 60.0


class Clients:
    """Addresses partitions and checks what comes back, with the account of both.

    Parameters
    ----------
    participants : Participants
        Node ids by partition id.
    accounting : Accounting
        Takes the bytes.
    max_num_examples : int
        A reply that claims more is refused.

    Attributes
    ----------
    refusals : dict of int to str
        Why a partition's last reply was refused, or did not come.
    """

    def __init__(self, participants: Participants, accounting: Accounting, max_num_examples: int) -> None:
        self.participants = participants
        self._accounting = accounting
        self._max_num_examples = max_num_examples
        self.refusals: dict[int, str] = {}

    def address(
        self,
        partitions: Sequence[int],
        message_type: str,
        records: Mapping[str, ArrayRecord],
        server_round: int,
        timeout: float,
        state_rounds: Mapping[int, int] = types.MappingProxyType({}),
    ) -> list[Message]:
        """Return one message with the records for each partition, and count its bytes.

        ``timeout`` (seconds) is how long the answers will be waited for: Flower drops a message after its time
        to live, of 12 hours by default, whatever its sender waits for. ``state_rounds`` tells each client from which
        round its last accepted reply was, see ``ClientState``; none if it is missing.
        """
        contents = {r: request(records, server_round, r) for r in {state_rounds.get(p, 0) for p in partitions}}
        self._accounting.bytes_down += sum(payload_bytes(arrays) for arrays in records.values()) * len(partitions)
        node_of, ttl = self.participants.node_of, timeout + _TTL_MARGIN_SECONDS
        return [
            Message(contents[state_rounds.get(p, 0)], dst_node_id=node_of[p], message_type=message_type, ttl=ttl)
            for p in partitions
        ]

    def accept(
        self,
        replies: Iterable[Message],
        awaited: Sequence[int],
        what: str,
        references: Mapping[str, Weights],
        metrics: Sequence[str],
        check: Callable[[Reply], None] | None = None,
    ) -> list[Reply]:
        """Check replies; warn of each one refused or missing; return the good ones by partition id.

        ``references`` and ``metrics`` are what each must have, see ``accept_reply``; ``check`` may refuse more.
        """
        accepted: dict[int, Reply] = {}
        refused: dict[int, str] = {}
        for message in replies:
            partition = self.participants.partition_of(message)
            if partition is None:
                continue  # its client is named below
            try:
                reply = accept_reply(
                    message, partition, references, metrics=metrics, max_num_examples=self._max_num_examples
                )
                if check is not None:
                    check(reply)
            except ReplyRefusedError as error:
                refused[partition] = str(error)
            else:
                self._accounting.bytes_up += reply.num_bytes
                accepted[partition] = reply
        for partition in set(awaited) - set(accepted) - set(refused):
            refused[partition] = "its node is gone or did not answer in time"
        for partition, reason in sorted(refused.items()):
            logger.warning("%s: client %d is left out: %s", what, partition, reason)
        self.refusals |= refused
        return [accepted[partition] for partition in sorted(accepted)]
