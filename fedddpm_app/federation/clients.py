"""The run's clients: messages to them, the order of the messages, and the count of bytes."""

import functools
import types
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedddpm_app.config import Config
from fedddpm_app.federation.accounting import Accounting
from fedddpm_app.federation.admission import Admission
from fedddpm_app.federation.errors import ActorLostError
from fedddpm_app.federation.flower_internals import is_deployed
from fedddpm_app.federation.messages.deadlines import time_to_live
from fedddpm_app.federation.messages.messaging import exchange
from fedddpm_app.federation.messages.records import ARRAYS, EXCHANGE, FORGET, RETURNED, request
from fedddpm_app.federation.messages.replies import Reply, ReplyRefusedError, ReplySpec, accept_reply
from fedddpm_app.federation.nodes.bindings import NOT_ITS_OWN, Bindings
from fedddpm_app.federation.nodes.participants import Participants
from fedddpm_app.federation.nodes.roll_call import RollCall
from fedddpm_app.federation.ports import Recorder
from fedddpm_app.federation.security_log import SECURITY_LOG, WITHHELD, SecurityLog
from fedddpm_app.progress import logger
from fedddpm_app.transport import Packed, Transport


@dataclass(frozen=True, eq=False)
class Part:
    """The weights for clients that do not exchange all of them.

    Attributes
    ----------
    packed : Packed
        The weights that they get.
    returned : sequence of str
        The names of the weights that they return; empty for all.
    """

    packed: Packed
    returned: Sequence[str] = ()


NO_PARTS: Mapping[int, Part] = types.MappingProxyType({})


class Clients:
    """Addresses messages to partitions, and counts the bytes that are sent and received.

    Parameters
    ----------
    participants : Participants
        Node ids by partition id.
    accounting : Accounting
        Counts the bytes.
    transport : Transport
        Receives the weights of replies.
    admission : Admission
        Judges the replies.
    roll_call : RollCall
        Knows which clients are connected.
    log : SecurityLog, optional
        Where refused replies are written.

    Attributes
    ----------
    refusals : dict of int to str
        By partition, the reason why its last reply was refused or is missing.
    declined : set of int
        The partitions that declined a training of a round: they are not asked again, until their SuperNode is started
        anew or the run is resumed.
    simulated : bool
        Whether messages may wait for a free process.
    state_run : str
        The id of the run that the clients' states and their accounts of privacy belong to: of a resumed run, the first
        one, also if it is resumed from its start. Else a client that has pretrained would begin a second account.
    state_rounds : dict of int to int
        By partition, the round of its node's last accepted reply, see ``ClientState``; a client without one is
        missing. A newcomer begins where the partition's own node was, whose round is kept until it is back.
    """

    def __init__(
        self,
        participants: Participants,
        accounting: Accounting,
        transport: Transport,
        admission: Admission,
        roll_call: RollCall,
        log: SecurityLog | None = None,
    ) -> None:
        self.participants = participants
        self.transport = transport
        self.admission = admission
        self.refusals: dict[int, str] = {}
        self.declined: set[int] = set()
        self.simulated = False
        self.state_run = ""
        self.state_rounds: dict[int, int] = {}
        self.log = log or SecurityLog()
        self._rounds_of_owners: dict[int, int] = {}  # by partition that a newcomer holds
        self._roll_call = roll_call
        self._accounting = accounting
        self._steps: dict[str, dict[int, float]] = {}

    @classmethod
    def meet(
        cls, grid: Grid, config: Config, accounting: Accounting, transport: Transport, recorder: Recorder
    ) -> "Clients":
        """Find the run's clients, as ``RollCall.start`` does.

        The recorder keeps the security log and, in a deployment, the nodes that the partitions belong to: in a
        simulation the nodes of a resumed run are new ones of the same machine.
        """
        waiting, simulated = config.waiting, not is_deployed(grid.run)
        log = SecurityLog(functools.partial(recorder.append_to, SECURITY_LOG))
        bindings = Bindings(None if simulated else recorder)
        roll_call = RollCall(grid, config.data.num_clients, waiting.node_timeout, transport.probe(), bindings, log)
        found = roll_call.start(waiting.min_available_nodes)
        clients = cls(found, accounting, transport, Admission(config), roll_call, log)
        clients.simulated = simulated
        clients.state_run = recorder.first_run or str(grid.run.run_id)
        return clients

    def state_dict(self) -> dict[str, object]:
        """Return what is known of the clients so far, for a checkpoint."""
        rounds = {"state_rounds": dict(self.state_rounds), "rounds_of_owners": dict(self._rounds_of_owners)}
        return {"admission": self.admission.state_dict(), "state_run": self.state_run, **rounds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with what a checkpoint knows."""
        self.admission.load_state_dict(state["admission"])
        self.state_run = state["state_run"]
        self.state_rounds = {**state["state_rounds"]}
        self._rounds_of_owners = {**state["rounds_of_owners"]}
        self._follow_nodes()

    def present(self, at_least: int = 0) -> list[int]:
        """Return the partitions of the connected clients; wait a bounded time for ``at_least`` of them."""
        before = dict(self.participants.node_of)
        self._roll_call.update(self.participants, at_least)
        changed = {p for p, node in self.participants.node_of.items() if before.get(p) != node}
        self.declined -= changed  # a SuperNode was started anew, maybe with another policy
        self._follow_nodes()
        return self.participants.present

    def _follow_nodes(self) -> None:
        """Keep the rounds of owners whose partitions newcomers hold; use them again for the owners that are back."""
        newcomers = self.participants.newcomers
        for partition in newcomers - self._rounds_of_owners.keys():
            self._rounds_of_owners[partition] = self.state_rounds.get(partition, 0)
        for partition in self._rounds_of_owners.keys() & {*self.participants.owned}:
            self.state_rounds[partition] = self._rounds_of_owners.pop(partition)

    def withheld_from(self, partitions: Iterable[int], action: str) -> dict[int, str]:
        """Return the partitions that newcomers hold, with the reason why they are not sent a client's own work."""
        withheld = dict.fromkeys(sorted({*partitions} & self.participants.newcomers), NOT_ITS_OWN)
        if withheld:
            self.log.add(WITHHELD, action=action, partitions=[*withheld])
        return withheld

    def forget(self, grid: Grid, timeout: float) -> None:
        """Ask all connected clients to remove the state that they keep for this run."""
        messages = self.address(self.present(), FORGET, {}, 0, timeout)
        with suppress(ActorLostError):  # at the end of the run, which is complete
            for _ in exchange(grid, messages, timeout, self.participants.under_way):
                continue

    def address(
        self,
        partitions: Sequence[int],
        message_type: str,
        records: Mapping[str, Packed],
        server_round: int,
        timeout: float,
        with_states: bool = False,
        parts: Mapping[int, Part] = NO_PARTS,
        kept: float = 0.0,
    ) -> list[Message]:
        """Return one message with the records for each partition, and count its bytes.

        ``parts`` has the record ``arrays`` of each partition that does not exchange all of the global weights.

        Clients that took the most steps for the last message of this type come first, so that the last ones to finish
        are short. A new client is treated as one of the longest. Clients with equal steps are in the order of the
        partitions, in which replies are folded: a reply that arrives before its turn may have to wait on disk.

        ``timeout`` (seconds) is the messages' time limit, see ``deadlines``. It also sets their time to live: Flower
        drops a message after that time, which is 12 hours by default, however long the sender waits.
        ``kept`` (seconds) is added to it: a message that waits to be sent, and a reply that waits for the server, then
        live longer.
        With ``with_states``, a message names the round whose state its client continues from (``state_rounds``).
        """
        contents: dict[int, RecordDict] = {}
        shared: dict[tuple[int, Part | None], RecordDict] = {}  # most messages have equal content
        for p in partitions:
            part, state_round = parts.get(p), self.state_rounds.get(p, 0) if with_states else 0
            packed = {**records, ARRAYS: part.packed} if part else records
            self._accounting.bytes_down += sum(each.num_bytes for each in packed.values())
            if (state_round, part) not in shared:
                arrays = {name: each.record for name, each in packed.items()}
                content = request(arrays, server_round, state_round, self.state_run, timeout)
                if part and part.returned:
                    content[EXCHANGE] = ConfigRecord({RETURNED: [*part.returned]})
                shared[state_round, part] = content
            contents[p] = shared[state_round, part]
        node_of, under_way = self.participants.node_of, self.participants.under_way
        ttl = time_to_live(timeout, max(under_way or 1, len(partitions)) if self.simulated else 0) + kept
        steps = self._steps.setdefault(message_type, {})
        longest = max(steps.values(), default=0.0)
        return [
            Message(contents[p], dst_node_id=node_of[p], message_type=message_type, ttl=ttl)
            for p in sorted(partitions, key=lambda p: (-steps.get(p, longest), p))
        ]

    def accept(self, message: Message, partition: int, spec: ReplySpec) -> Reply:
        """Check a client's reply, and count its bytes.

        Whatever a client sends, this raises only ``ReplyRefusedError``, also if a check that a strategy adds fails.
        """
        check_examples = functools.partial(self.admission.check_examples, partition, held_out=spec.held_out)
        try:
            reply = accept_reply(message, partition, spec, self.transport, check_examples)
        except ReplyRefusedError as error:
            self.log.refuse(partition, error, spec.server_round)
            raise
        except Exception as error:
            logger.info("client %d: its reply cannot be checked:", partition, exc_info=error)
            refusal = ReplyRefusedError(f"{type(error).__name__}: {error}")
            self.log.refuse(partition, refusal, spec.server_round)
            raise refusal from error
        self._count(reply)
        return reply

    def _count(self, reply: Reply) -> None:
        """Count the bytes of an accepted reply, and store its number of steps."""
        self._accounting.bytes_up += reply.num_bytes
        steps = reply.number("steps")
        message_type = reply.message.metadata.message_type  # a client's text
        if steps >= 0 and message_type in self._steps:
            self._steps[message_type][reply.partition_id] = steps
