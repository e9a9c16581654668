"""Who is there: nodes are asked for their partition as they appear, at the start of a run and before every phase.

A site's SuperNode may start late, be killed, and come back, with its old node id or with a new one.
"""

import time

from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedddpm_app.config import ConfigError
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.flower_internals import ErrorCode
from fedddpm_app.federation.participants import Participants
from fedddpm_app.federation.records import METRICS, PARTITION_ID, PROBE, SHARES_MEMORY, WORKER
from fedddpm_app.progress import logger

_FIRST_POLL_SECONDS = 0.01
_LONGEST_POLL_SECONDS = 0.5
_SAY_SECONDS = 10.0
_TTL_SECONDS = 60.0  # of a question; who has not answered by then is asked again
_GREET_SECONDS = 20.0  # for the answer of a node that appeared: a process may have to start for it
_GONE = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE)


class RollCall:
    """Knows the connected nodes of a run by the partitions that they hold.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    num_clients : int
        Partitions are 0 .. ``num_clients`` - 1.
    timeout : float
        Seconds to wait for nodes: at the start for all of them, later for ``min_replies``.
    probe : ArrayRecord, optional
        What nodes are asked to read, to learn whether files can travel.
    """

    def __init__(self, grid: Grid, num_clients: int, timeout: float, probe: ArrayRecord | None = None) -> None:
        self._grid = grid
        self._num_clients = num_clients
        self._timeout = timeout
        self._content = RecordDict({} if probe is None else {PROBE: probe})
        self._started = False  # what is an error before is a warning then: no newcomer ends a run
        self._online: set[int] = set()
        self._greeted: set[int] = set()  # those online that were asked
        self._asked: dict[str, int] = {}  # node by the id of the message that waits for its answer
        self._silent: set[int] = set()  # those that did not answer once: they are asked again, and not waited for
        self._met: dict[int, int] = {}  # partition by node, in the order of their answers
        self._workers: set[object] = set()
        self._sharing = 0

    def start(self, min_available: int) -> Participants:
        """Wait for all nodes, and when time is over go on with ``min_available``; 0 means all.

        Raises
        ------
        ConfigError
            When fewer connect, or when they do not hold partitions of the run, one each.
        """
        self._wait(self._num_clients, self._timeout)
        found, needed = self._by_partition(), min_available or self._num_clients
        if len(found) < needed:
            raise ConfigError(self._too_few(len(found), needed))
        self._started = True
        sharing = self._sharing == len(self._met) == self._num_clients  # who comes later may be on another host
        participants = Participants(found, len(self._workers), sharing)
        for partition in participants.absent(self._num_clients):
            logger.warning("client %d is not connected: the run starts without it", partition)
        return participants

    def update(self, participants: Participants, min_replies: int) -> None:
        """Take note of nodes that are gone, came back or are new, and say so.

        Raises
        ------
        RoundFailedError
            When fewer than ``min_replies`` clients are connected, and do not come back within the time limit.
        """
        self._hear()
        self._greet()
        if self._online & set(self._asked.values()) - self._silent:
            self._wait(self._num_clients, _GREET_SECONDS)
            self._silent |= set(self._asked.values())
        if len(self._by_partition()) < min_replies:
            logger.warning("%d clients are connected: waiting for more", len(self._by_partition()))
            self._wait(min_replies, self._timeout)
        before = {partition: participants.node_of[partition] for partition in participants.present}
        now = self._by_partition()
        participants.update(now)
        for partition in sorted(before.keys() - now.keys()):
            logger.warning("client %d is gone: its node is not connected", partition)
        for partition in sorted(now.keys() - before.keys()):
            logger.warning("client %d is connected, and takes part from now on", partition)
        if len(now) < min_replies:
            raise RoundFailedError(
                f"{len(now)} clients are connected after node-timeout = {self._timeout:.0f} s, and min-replies = "
                f"{min_replies}: start the missing SuperNodes, or use a smaller min-replies."
            )

    def _wait(self, wanted: int, timeout: float) -> None:
        """Ask and hear nodes until ``wanted`` partitions are held and all nodes answered, or time is over."""
        deadline = time.monotonic() + timeout
        said, pause, complete = time.monotonic(), _FIRST_POLL_SECONDS, False
        while True:
            self._greet()
            self._hear()
            now, known = time.monotonic(), len(self._by_partition())
            if known >= wanted and not complete:  # a node that is dead and still listed does not hold up the others
                complete, deadline = True, min(deadline, now + _GREET_SECONDS)
            if now > deadline or ((complete or self._started) and not set(self._asked.values()) - self._silent):
                return
            if now - said > _SAY_SECONDS:
                logger.info("waiting for nodes: %d of %d have told their partition", known, wanted)
                said = now
            time.sleep(pause)
            pause = min(_LONGEST_POLL_SECONDS, pause * 2)

    def _greet(self) -> None:
        """Ask the nodes that have appeared since the last look, also those that were away, or did not answer."""
        self._online = set(self._grid.get_node_ids())
        self._greeted &= self._online
        for node in sorted(self._online - self._greeted):
            self._met.pop(node, None)
            message = Message(self._content, dst_node_id=node, message_type=MessageType.QUERY, ttl=_TTL_SECONDS)
            self._asked.update({pushed: node for pushed in self._grid.push_messages([message]) if pushed})
        self._greeted |= self._online

    def _hear(self) -> None:
        """Take the answers that have come."""
        for reply in list(self._grid.pull_messages(set(self._asked))) if self._asked else []:
            node = self._asked.pop(reply.metadata.reply_to_message_id)
            if not reply.has_error():
                self._silent.discard(node)
                self._meet(node, reply.content.metric_records.get(METRICS, MetricRecord()))
            elif reply.error.code in _GONE:
                self._greeted.discard(node)
            else:
                self._refuse(f"a node could not tell its partition: {reply.error.reason}")

    def _meet(self, node: int, told: MetricRecord) -> None:
        """Take note of what a node told of itself; it is not trusted."""
        partition = told.get(PARTITION_ID)
        if not isinstance(partition, int):
            return self._refuse(f"a node told no partition-id, but {partition!r}.")
        self._workers.add(str(told.get(WORKER)))
        self._sharing += told.get(SHARES_MEMORY) == 1
        self._met[node] = partition
        held = [self._met[other] for other in self._online if other in self._met]
        if held.count(partition) > 1:  # in a run the first may be dead and still listed: then the second comes next
            self._refuse(f"partition-id = {partition} is held by two nodes: give each node its own.")
        if not 0 <= partition < self._num_clients:
            self._refuse(
                f"num-clients = {self._num_clients}, but the nodes hold the partitions {sorted(held)}: set num-clients "
                f"to the number of nodes, here {len(held)}, or --federation-config "
                f"'num-supernodes={self._num_clients}'."
            )
        return None

    def _refuse(self, reason: str) -> None:
        if not self._started:
            raise ConfigError(reason)
        logger.warning("%s", reason)

    def _by_partition(self) -> dict[int, int]:
        """Return the connected nodes by partition; of two that hold one the node that answered first."""
        known: dict[int, int] = {}
        for node, partition in self._met.items():
            if node in self._online and 0 <= partition < self._num_clients:
                known.setdefault(partition, node)
        return known

    def _too_few(self, found: int, needed: int) -> str:
        key = "num-clients" if needed == self._num_clients else "min-available-nodes"
        mute = len(self._online & set(self._asked.values()))
        silent = f" ({mute} more do not answer: does their SuperExec run?)" if mute else ""
        return (
            f"{key} = {needed}, but after node-timeout = {self._timeout:.0f} s only {found} nodes are connected{silent}"
            f": in a simulation add --federation-config 'num-supernodes={self._num_clients}'; in a deployment start "
            f"the missing SuperNodes, or set {key} = {max(1, found)}."
        )
