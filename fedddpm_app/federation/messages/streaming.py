"""The replies of one exchange, which are checked as they arrive and yielded one by one in a fixed order."""

import itertools
import math
import types
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Message, MetricRecord

from fedddpm_app.config import one_line
from fedddpm_app.federation.errors import TooFewRepliesError
from fedddpm_app.federation.flower_internals import Run, is_deployed
from fedddpm_app.federation.messages.records import ARRAYS, METRICS
from fedddpm_app.federation.messages.replies import GONE, Reply, ReplyDeclinedError, ReplyRefusedError, ReplySpec
from fedddpm_app.progress import ProgressEvent, logger, report

if TYPE_CHECKING:
    from fedddpm_app.federation.clients import Clients

_WAITING_IN_MEMORY = 2


class ReplyStream:
    """Checks replies as they arrive; after the last one, warns about each refused or missing reply.

    Parameters
    ----------
    clients : Clients
        Knows the sender of a message, and records refusals and bytes.
    messages : iterable of Message
        The replies.
    awaited : sequence of int
        The partitions that received a message; only the first reply of each counts.
    name : str
        The name of the exchange in warnings.
    spec : ReplySpec
        The specification of a reply.
    specs : mapping of int to ReplySpec, optional
        By partition, the specification of a reply with other weights than in ``spec``, or whose change is measured from
        others, but with the same further records.

    Attributes
    ----------
    refused : dict of int to str
        By partition, the reason why its reply was refused or is missing; complete after the last reply.
    declined : set of int
        Those of them that declined: to ask them again would change nothing.
    on_close : callable
        Called after the last reply.
    """

    def __init__(
        self,
        clients: "Clients",
        messages: Iterable[Message],
        awaited: Sequence[int],
        name: str,
        spec: ReplySpec,
        specs: Mapping[int, ReplySpec] = types.MappingProxyType({}),
    ) -> None:
        self._clients = clients
        self._messages = messages
        self._awaited = awaited
        self._name = name
        self._spec = spec
        self._specs = specs
        self._first: dict[str, list[float]] = {}  # by further record, the norms that the first ones are compared with
        self.refused: dict[int, str] = {}
        self.declined: set[int] = set()
        self.on_close: Callable[[], None] = lambda: None

    def too_few(self, num_replies: int, needed: int) -> TooFewRepliesError:
        """Return the error for fewer accepted replies than ``needed``, with the reason of one client."""
        first = next((f"; client {partition}: {self.refused[partition]}" for partition in sorted(self.refused)), "")
        fewer = f", fewer than min-replies = {needed}" if needed > 1 else ""
        return TooFewRepliesError(
            f"{self._name}: {num_replies or 'none'} of the {len(self._awaited)} clients returned a usable reply"
            f"{fewer}{first}"
        )

    def left_out(self, phase: str) -> dict[str, object]:
        """Return the partitions left out, with the reasons, for a line of ``stats.jsonl``; empty if there are none."""
        reasons = {str(partition): reason for partition, reason in sorted(self.refused.items())}
        return {f"{phase}/left_out": reasons} if reasons else {}

    def as_they_come(self) -> Iterator[Reply]:
        """Yield the accepted replies in the order of arrival; neither weights nor records are judged by their norms."""
        for _, reply in self._settled():
            if reply is not None:
                yield reply
                del reply
        self._close()

    def answers(self) -> list[Reply]:
        """Return the accepted replies in the order of the partition ids, all in memory.

        The order makes sums over them independent of the scheduling. Their weights and further records are judged
        together, see ``Admission.judge_together``.
        """
        replies = sorted((r for _, r in self._settled() if r is not None), key=lambda reply: reply.partition_id)
        too_large = self._clients.admission.judge_together(replies, lambda: self._spec.records[ARRAYS].start_norm)
        for partition, reason in too_large.items():
            self._refuse_judged(partition, ReplyRefusedError(reason))
        self._close()
        return [reply for reply in replies if reply.partition_id not in too_large]

    def by_partition(self, folder: Path) -> Iterator[Reply]:
        """Yield the accepted replies in the order of the partition ids, whatever the order of arrival.

        A reply that arrives before its turn waits. A few of these replies stay in memory, the others wait in
        ``folder``: memory does not grow with the number of clients. When it is its turn, a reply with weights is
        judged by the norms of its change and of its further records, see ``Admission.judge``. The first replies with
        a further record wait for each other.
        """
        todo, settled, waiting = sorted(self._awaited), set[int](), dict[int, Reply]()
        for partition, reply in self._settled():
            settled.add(partition)
            if reply is not None:
                in_memory = partition == todo[0] or len(waiting) < _WAITING_IN_MEMORY
                waiting[partition] = reply if in_memory else _on_disk(reply, folder)
            del reply
            while todo and todo[0] in settled and self._can_judge(waiting, todo, settled):
                yield from self._judged(waiting, todo.pop(0))
        self._can_judge(waiting, todo, todo)
        for partition in todo:
            yield from self._judged(waiting, partition)
        self._close()

    def _can_judge(self, waiting: Mapping[int, Reply], todo: Sequence[int], settled: Container[int]) -> bool:
        """Return whether the further records of the next reply can be compared with those of others."""
        further = self._spec.records.keys() - {ARRAYS}
        if further and not self._first:
            in_turn = itertools.takewhile(settled.__contains__, todo)
            norms = [waiting[partition].record_norms for partition in in_turn if partition in waiting]
            self._first = self._clients.admission.first_norms(further, norms)
        return bool(self._first) or not further

    def refuse(self, partition: int, reason: str) -> None:
        """Leave out a client whose reply was accepted, for a reason that became known later."""
        self._refuse_judged(partition, ReplyRefusedError(reason))
        self._clients.refusals[partition] = self.refused[partition]
        logger.warning("%s: client %d is left out: %s", self._name, partition, self.refused[partition])

    def _refuse_judged(self, partition: int, error: ReplyRefusedError) -> None:
        """Store the reason why a reply is refused that had passed the checks of its content."""
        self.refused[partition] = one_line(str(error))
        self._clients.log.refuse(partition, error, self._spec.server_round)

    def _judged(self, waiting: dict[int, Reply], partition: int) -> Iterator[Reply]:
        """Yield a client's waiting reply if its change of the weights is not too large."""
        if partition not in waiting:
            return
        reply, records = waiting.pop(partition), self._specs.get(partition, self._spec).records
        try:
            self._clients.admission.judge(reply, lambda: records[ARRAYS].start_norm, self._first)
        except ReplyRefusedError as error:
            self._refuse_judged(partition, error)
        else:
            self._clients.admission.learn_size(reply)
            yield reply

    def _settled(self) -> Iterator[tuple[int, Reply | None]]:
        """Yield each partition that answered, with its reply, or with None if the reply is refused."""
        refused, settled = self.refused, set[int]()
        for message in self._messages:
            partition = self._clients.participants.partition_of(message)
            if partition is None or partition in settled or partition not in self._awaited:
                continue  # not counted; a client without a counted reply is named below
            settled.add(partition)
            reply = self._accepted(message, partition)
            yield partition, reply
            del reply
        for partition in sorted(set(self._awaited) - settled):
            refused[partition] = GONE

    def _accepted(self, message: Message, partition: int) -> Reply | None:
        """Check a reply; store the reason if it is refused."""
        try:
            return self._clients.accept(message, partition, self._specs.get(partition, self._spec))
        except ReplyRefusedError as error:
            self.refused[partition] = str(error)
            if isinstance(error, ReplyDeclinedError):
                self.declined.add(partition)
            return None

    def _close(self) -> None:
        """Report the clients left out, after the last reply."""
        for partition, reason in sorted(self.refused.items()):
            logger.warning("%s: client %d is left out: %s", self._name, partition, reason)
        self._clients.refusals |= self.refused
        if self._awaited:  # else the replies of others may be under way, see ``Conversation``
            self._clients.transport.remove_unread()
        self.on_close()


def with_progress(
    run: Run, replies: Iterator[Reply], phase: str, server_round: int | None = None, num_rounds: int | None = None
) -> Iterator[Reply]:
    """Yield replies, and report each client as done, see ``report_done``."""
    for reply in replies:
        report_done(run, reply, phase, server_round, num_rounds)
        yield reply
        del reply


def report_done(
    run: Run, reply: Reply, phase: str, server_round: int | None = None, num_rounds: int | None = None
) -> None:
    """Report a client as done in a deployment, where its log lines stay on its host."""
    if not is_deployed(run):
        return
    count, loss = reply.number("steps"), reply.number("loss")
    steps = 0 if math.isnan(count) else int(count)  # an algorithm need not have this metric
    known = None if math.isnan(loss) else loss  # a private training reports none, a masked one is not known
    report(ProgressEvent(phase, steps, steps, 0, known, reply.partition_id, server_round, num_rounds))


def collecting(replies: Iterator[Reply], into: list[Reply]) -> Iterator[Reply]:
    """Yield replies, and append each one to a list, with its declared metrics alone."""
    for reply in replies:
        declared: MetricRecord = reply.message.content.metric_records[METRICS]
        into.append(replace(reply, payloads={}, metrics=declared))
        yield reply
        del reply


def _on_disk(reply: Reply, folder: Path) -> Reply:
    """Move a reply to disk, or leave it in memory if that fails."""
    try:
        return reply.on_disk(folder)
    except OSError as error:
        logger.warning("client %d: its reply waits in memory: %s", reply.partition_id, error)
        return reply
