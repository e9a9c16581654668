"""The connected nodes: new nodes are asked for their partition, at the start of a run and before every phase.

A site's SuperNode may start late, be killed, and come back with its old node id or with a new one. A node that fails,
or whose answer does not fit, counts as not connected. It is asked again before every phase.
"""

import time

from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedddpm_app.config import ConfigError
from fedddpm_app.federation.errors import TooFewRepliesError
from fedddpm_app.federation.flower_internals import ErrorCode
from fedddpm_app.federation.messages.deadlines import time_to_live
from fedddpm_app.federation.messages.pulling import Puller
from fedddpm_app.federation.messages.reasons import reason_of
from fedddpm_app.federation.messages.records import METRICS, PARTITION_ID, PROBE, SHARES_MEMORY, WORKER
from fedddpm_app.federation.nodes.attendance import log_changes, misfit, warn_of_changes
from fedddpm_app.federation.nodes.bindings import Bindings, identities
from fedddpm_app.federation.nodes.participants import Participants
from fedddpm_app.federation.security_log import CLAIM_REFUSED, NODE_REFUSED, SecurityLog
from fedddpm_app.limits import LONGEST_VALUE
from fedddpm_app.progress import logger

_FIRST_POLL_SECONDS = 0.01
_LONGEST_POLL_SECONDS = 0.5
_LOG_SECONDS = 10.0  # between messages while nodes are awaited
_QUERY_SECONDS = 60.0  # at least, for an answer; a node whose query has expired is queried again
_RETRY_SECONDS = 5.0  # between queries of a node that failed, before the run starts
_ANSWER_SECONDS = 20.0  # for the answer of a new node, which may have to start a process
_GONE = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE)


class RollCall:
    """Keeps track of a run's connected nodes, and of the partitions that they hold.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    num_clients : int
        Partitions are 0 .. ``num_clients`` - 1.
    timeout : float
        Seconds to wait for nodes: at the start for all of them, later for ``min_replies``.
    probe : ArrayRecord, optional
        A record that every node tries to read, to find out whether weights can travel in files.
    bindings : Bindings, optional
        The nodes that the partitions belong to.
    log : SecurityLog, optional
        Where joins, departures and refusals are written.
    """

    def __init__(
        self,
        grid: Grid,
        num_clients: int,
        timeout: float,
        probe: ArrayRecord | None = None,
        bindings: Bindings | None = None,
        log: SecurityLog | None = None,
    ) -> None:
        self._grid = grid
        self._num_clients = num_clients
        self._timeout = timeout
        self._content = RecordDict({} if probe is None else {PROBE: probe})
        self._bindings = bindings or Bindings()
        self._log = log or SecurityLog()
        self._identity: dict[int, str] = {}  # of the nodes that were queried
        self._started = False
        self._online: set[int] = set()
        self._queried: set[int] = set()  # online nodes that were asked for their partition
        self._puller = Puller(grid)
        self._pending: dict[str, int] = {}  # node by the id of its message, until it answers
        self._silent: set[int] = set()  # did not answer once: they are queried again, and not awaited
        self._failed: dict[int, str] = {}  # by node, the reason why it cannot take part; such nodes are not awaited
        self._partition_of: dict[int, int] = {}  # partition by node, in the order of their answers
        self._workers: set[object] = set()
        self._sharing = 0

    def start(self, min_available: int) -> Participants:
        """Wait for all nodes; after the time limit, continue with at least ``min_available`` of them; 0 means all.

        Raises
        ------
        ConfigError
            If fewer nodes that can take part connect, or, at once, if all nodes report the same error.
        """
        self._wait(self._num_clients, self._timeout)
        found, needed = self._by_partition(), min_available or self._num_clients
        if len(found) < needed:
            raise ConfigError(self._too_few(len(found), needed))
        self._started = True
        sharing = self._sharing == len(self._partition_of) == self._num_clients  # a later node may be on another host
        participants = Participants(found, len(self._workers), sharing)
        participants.update(found, self._bindings.newcomers(found, self._identity))
        log_changes(self._log, {}, found, self._identity, participants.newcomers)
        for partition in participants.absent(self._num_clients):
            logger.warning("client %d is not connected: the run starts without it", partition)
        return participants

    def update(self, participants: Participants, min_replies: int) -> None:
        """Update the participants with the nodes that are gone, are back or are new, and log each change.

        Raises
        ------
        TooFewRepliesError
            If fewer than ``min_replies`` clients are connected, and the others do not come back within the time limit.
        """
        self._read_answers()
        self._query_failed_nodes()
        self._query_new_nodes()
        self._read_answers()
        if self._online & set(self._pending.values()) - self._silent:
            self._wait(self._num_clients, _ANSWER_SECONDS, for_answers=True)
            self._silent |= set(self._pending.values())
        if len(self._by_partition()) < min_replies:
            logger.warning("%d clients are connected: waiting for more", len(self._by_partition()))
            self._wait(min_replies, self._timeout)
        before = {partition: participants.node_of[partition] for partition in participants.present}
        now = self._by_partition()
        participants.update(now, self._bindings.newcomers(now, self._identity))
        warn_of_changes(before, now)
        log_changes(self._log, before, now, self._identity, participants.newcomers)
        if len(now) < min_replies:
            raise TooFewRepliesError(
                f"{len(now)} clients are connected after node-timeout = {self._timeout:.0f} s, but min-replies = "
                f"{min_replies}: start the missing SuperNodes, or use a smaller min-replies."
            )

    def _wait(self, wanted: int, timeout: float, *, for_answers: bool = False) -> None:
        """Query nodes and read answers until ``wanted`` partitions are held and all nodes answered, or time is over.

        With ``for_answers``, nobody is awaited who is not connected.
        """
        deadline = time.monotonic() + timeout
        last_log = last_retry = time.monotonic()
        pause, complete = _FIRST_POLL_SECONDS, False
        while True:
            self._query_new_nodes()
            self._read_answers()
            now, known = time.monotonic(), len(self._by_partition())
            self._check_common_error(known)
            if now - last_retry > _RETRY_SECONDS:
                self._query_failed_nodes()
                last_retry = now
            if known >= wanted and not complete:  # a dead node that is still listed does not delay the others
                complete, deadline = True, min(deadline, now + _ANSWER_SECONDS)
            if now > deadline or ((complete or for_answers) and not set(self._pending.values()) - self._silent):
                return
            if now - last_log > _LOG_SECONDS:
                logger.info("waiting for nodes: %d of %d have reported their partition", known, wanted)
                last_log = now
            time.sleep(pause)
            pause = min(_LONGEST_POLL_SECONDS, pause * 2)

    def _query_new_nodes(self) -> None:
        """Query the nodes that are new, are back, or did not answer."""
        self._online = set(self._grid.get_node_ids())
        self._queried &= self._online
        new = sorted(self._online - self._queried)
        self._identity |= identities(new, self._grid) if new else {}
        for node in new:
            self._partition_of.pop(node, None)
            ttl = time_to_live(max(_QUERY_SECONDS, self._timeout))
            message = Message(self._content, dst_node_id=node, message_type=MessageType.QUERY, ttl=ttl)
            self._pending.update({pushed: node for pushed in self._grid.push_messages([message]) if pushed})
        self._queried |= self._online

    def _query_failed_nodes(self) -> None:
        """Have the failed nodes queried again, except one that waits for the partition of another node."""
        self._queried -= self._failed.keys() - self._partition_of.keys()

    def _read_answers(self) -> None:
        """Read the answers that have arrived."""
        for message_id, node in list(self._pending.items()):
            reply = self._puller.pull(message_id, node)
            if reply is None:
                continue
            del self._pending[message_id]
            if node not in self._online:  # it is gone; it is queried again when it is back
                continue
            if reply.has_error() and reply.error.code in _GONE:
                self._queried.discard(node)
                continue
            if reply.has_error():
                reason = f"a node could not report its partition: {reason_of(reply.error)}"
            else:
                reason = self._register(node, reply.content.metric_records.get(METRICS, MetricRecord()))
            if not reason:
                self._silent.discard(node)
                self._failed.pop(node, None)
                continue
            self._fail(node, reason)

    def _fail(self, node: int, reason: str) -> None:
        """Count a node as not connected, and say so once for each reason."""
        if reason not in self._failed.values():  # once, for all nodes that report it
            logger.warning("%s", reason)
        if reason != self._failed.get(node):
            event = CLAIM_REFUSED if node in self._partition_of else NODE_REFUSED
            self._log.add(event, node=str(node), identity=self._identity[node], reason=reason)
        self._failed[node] = reason
        self._silent.add(node)

    def _register(self, node: int, metrics: MetricRecord) -> str:
        """Register a node by the metrics in its answer, which are not trusted; return the reason if it cannot be."""
        if problem := misfit(metrics, self._num_clients):
            return problem
        partition = int(metrics[PARTITION_ID])  # type: ignore[arg-type]
        self._workers.add(str(metrics.get(WORKER))[:LONGEST_VALUE])
        self._sharing += metrics.get(SHARES_MEMORY) == 1
        self._partition_of[node] = partition
        holder = self._by_partition()[partition]
        if holder != node:  # it takes over when the other one, which may be dead, is gone
            return (
                f"partition-id = {partition} is held by two nodes: node {holder} keeps it, and node {node} takes no "
                "part: give each node a different one."
            )
        self._bindings.claim(partition, self._identity[node])
        return ""

    def _check_common_error(self, known: int) -> None:
        """Raise ``ConfigError`` if, before the run starts, all nodes report the same error, and more than one does."""
        failed = [self._failed[node] for node in self._online & self._failed.keys()]
        several = len(failed) == len(self._online) >= min(2, self._num_clients)
        if not self._started and not known and several and len(set(failed)) == 1:
            raise ConfigError(failed[0])

    def _by_partition(self) -> dict[int, int]:
        """Return the connected nodes by partition.

        If two nodes hold the same one, it is the node that it belongs to, or else the node that answered first.
        """
        known: dict[int, int] = {}
        for node, partition in self._partition_of.items():
            if node in self._online and 0 <= partition < self._num_clients:
                known.setdefault(partition, node)
                if self._bindings.is_owner(partition, self._identity[node]):
                    known[partition] = node
        return known

    def _too_few(self, found: int, needed: int) -> str:
        key = "num-clients" if needed == self._num_clients else "min-available-nodes"
        num_silent = len(self._online & set(self._pending.values()))
        silent = f" ({num_silent} more do not answer: is their SuperExec running?)" if num_silent else ""
        failed = [self._failed[node] for node in sorted(self._online & self._failed.keys())]
        why = f" Not counted: {failed[0]}" if failed else ""
        return (
            f"{key} = {needed}, but after node-timeout = {self._timeout:.0f} s only {found} nodes are connected{silent}"
            f": in a simulation add --federation-config 'num-supernodes={self._num_clients}'; in a deployment start "
            f"the missing SuperNodes, or set {key} = {max(1, found)}.{why}"
        )
