"""The training of a round: its messages, its checked replies, and how to undo an attempt."""

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, Message, MessageType, MetricRecord

from fedddpm_app import weights as weights_module
from fedddpm_app.config import ConfigError
from fedddpm_app.federation.clients import Part
from fedddpm_app.federation.errors import TooFewRepliesError, check_weights
from fedddpm_app.federation.messages.records import ARRAYS, to_weights
from fedddpm_app.federation.messages.replies import Reply, ReplySpec
from fedddpm_app.federation.messages.streaming import ReplyStream, collecting, with_progress
from fedddpm_app.federation.rounds.exchanged import WHOLE, Exchanged, checked_exchanges, kind_of
from fedddpm_app.federation.server_state import load_named_state
from fedddpm_app.weights import Weights

if TYPE_CHECKING:
    from fedddpm_app.federation.strategy import FederatedStrategy


class RoundTraining:
    """One attempt at the training of a round: the messages, the checked replies, and how to undo the attempt.

    Parameters
    ----------
    strategy : FederatedStrategy
        The algorithm, whose ``global_weights`` are those that the round starts from.
    server_round : int
        From 1.
    """

    def __init__(self, strategy: "FederatedStrategy", server_round: int) -> None:
        self._strategy = strategy
        self._round = server_round
        values = {name: getattr(strategy, name, None) for name in strategy.state_attributes}
        self._before = {name: value for name, value in values.items() if not hasattr(value, "load_state_dict")}
        self._norms_before = strategy.clients.admission.history
        self._awaited: list[int] = []
        self._wanted = 0

    def messages(self, arrays: ArrayRecord) -> list[Message]:
        """Sample the round's clients, and return the messages with the weights for them."""
        strategy, server_round = self._strategy, self._round
        run, num_clients = strategy.config.run, strategy.config.data.num_clients
        participants = strategy.clients.participants
        strategy.round_log.begin(server_round, [], [])
        quorum = strategy.config.waiting.quorum(run.clients_per_round or num_clients)
        strategy.clients.present(quorum if strategy.trains_on_clients else 0)
        strategy.sampled = self.sample()
        self._wanted = min(run.clients_per_round or num_clients, len(participants.present))
        strategy.round_log.begin(server_round, strategy.sampled, participants.absent(num_clients))
        if not strategy.trains_on_clients:
            return []
        self.note_declined()
        strategy.exchanges = self._exchanges()
        extra = strategy.broadcast(server_round)
        if not strategy.sampled:
            return []
        self._awaited = self.asked()
        names, parts = _pack_parts(strategy, arrays)
        records = {name: strategy.outbox.pack(name, each, each) for name, each in extra.items()}
        if len(parts) < len(strategy.sampled):
            records[ARRAYS] = strategy.outbox.pack(ARRAYS, arrays, to_weights(arrays))
        strategy.outbox.keep_only({*records, *names})
        timeout, address = strategy.config.waiting.round_timeout, strategy.clients.address
        return address(self._awaited, MessageType.TRAIN, records, server_round, timeout, with_states=True, parts=parts)

    def sample(self) -> list[int]:
        """Return the clients that take part, out of the connected ones (here: ``clients-per-round`` of them)."""
        strategy, run = self._strategy, self._strategy.config.run
        participants = strategy.clients.participants
        declined = strategy.clients.declined
        return participants.sample(run.clients_per_round, run.seed, self._round, strategy.attempt, declined)

    def note_declined(self) -> None:
        """Record the clients that are not asked any more; raise ``TooFewRepliesError`` if no other one is there."""
        strategy, declined = self._strategy, sorted(self._strategy.clients.declined)
        if not declined:
            return
        strategy.record(declined=declined)
        present = strategy.clients.participants.present
        if present and set(present) <= set(declined):
            reason = strategy.clients.refusals.get(declined[0], "")
            raise TooFewRepliesError(
                f"round {self._round}: all connected clients have declined; client {declined[0]}: {reason}"
            )

    def quorum(self) -> int:
        """Return the number of good replies without which the round is repeated.

        A share counts the clients that would be in the round if none had declined.
        """
        return self._strategy.config.waiting.quorum(max(self._wanted, len(self._strategy.sampled)))

    def asked(self) -> list[int]:
        """Return those of the sampled clients that get the weights (here: all)."""
        return self._strategy.sampled

    def _exchanges(self) -> dict[int, Exchanged]:
        """Return what each client of the round exchanges.

        Raises
        ------
        ConfigError
            If parts are exchanged, and the run's ``aggregator`` cannot aggregate them.
        """
        strategy, rule = self._strategy, self._strategy.config.run.aggregator
        asked = strategy.exchanged(self._round, strategy.sampled)
        known = [partition for partition in strategy.sampled if strategy.has_model(partition)]
        exchanges = checked_exchanges(asked, strategy.sampled, strategy.global_weights, known)
        for start in {id(each.start): each.start for each in exchanges.values() if each.start}.values():
            weights_module.check_match(strategy.initial_weights, start)
        if rule != "fedavg" and any(each.is_partial for each in exchanges.values()):
            raise ConfigError(
                f'aggregator = "{rule}" needs all weights of every client, but algorithm = '
                f'"{strategy.config.run.algorithm}" exchanges parts: use aggregator = "fedavg".'
            )
        return exchanges

    def aggregate(self, replies: Iterable[Message]) -> tuple[Weights, MetricRecord]:
        """Return the aggregated weights and the mean metrics of the accepted replies."""
        accepted: list[Reply] = []
        stream, in_order = self.open(replies, accepted)
        weights = self._strategy.aggregate(self._round, in_order)
        for _ in in_order:  # replies that the algorithm did not read are checked and counted too
            continue
        return self.finish(weights, accepted, accepted, stream.left_out("train"))

    def open(self, replies: Iterable[Message], accepted: list[Reply]) -> tuple[ReplyStream, Iterator[Reply]]:
        """Return the stream of the round's replies, and an iterator over the checked ones, which fills ``accepted``."""
        strategy = self._strategy
        different = {each.key: each for each in (WHOLE, *strategy.exchanges.values())}
        by_key = {key: self._spec(each) for key, each in different.items()}
        specs = {partition: by_key[each.key] for partition, each in strategy.exchanges.items()}
        name = f"round {self._round}"
        stream = ReplyStream(strategy.clients, replies, self._awaited, name, by_key[WHOLE.key], specs)
        in_order = collecting(stream.by_partition(strategy.recorder.scratch), accepted)
        in_order = self._with_quorum(in_order, stream, accepted)
        run, num_rounds = strategy.grid.run, strategy.config.run.num_rounds
        return stream, with_progress(run, in_order, "train", self._round, num_rounds)

    def finish(
        self, weights: Weights, accepted: Sequence[Reply], measured: Sequence[Reply], left_out: Mapping[str, object]
    ) -> tuple[Weights, MetricRecord]:
        """Return the aggregated weights and the mean metrics, and keep what later rounds and the log need.

        Parameters
        ----------
        weights : Weights
            The result of the algorithm's ``aggregate``.
        accepted : sequence of Reply
            One of each client that took part.
        measured : sequence of Reply
            Those whose metrics are averaged.
        left_out : mapping
            For the round's line.
        """
        check_weights(weights, "aggregate")
        strategy = self._strategy
        contents = [reply.message.content for reply in measured]
        metrics = strategy.train_metrics_aggr_fn(contents, strategy.weighted_by_key) if contents else MetricRecord()
        strategy.train_loss = float(metrics.get("loss", math.nan))  # type: ignore[arg-type]
        strategy.clients.state_rounds |= {reply.partition_id: self._round for reply in accepted}
        strategy.round_log.add_replies(accepted, metrics)
        strategy.round_log.add(strategy.spending.add(accepted))
        strategy.round_log.add(left_out)
        return weights_module.cast_like(weights, strategy.initial_weights), metrics

    def _spec(self, exchange: Exchanged) -> ReplySpec:
        """Return the specification of the replies of clients with this exchange."""
        strategy, expect = self._strategy, self._strategy.transport.expect
        start = exchange.start or strategy.global_weights
        names = [name for name in start if exchange.returned is None or name in exchange.returned]
        select, base = weights_module.select, weights_module.select(start, names)
        records = {
            name: expect(select(reference, names), base) if name == ARRAYS else expect(reference)
            for name, reference in strategy.reply_references.items()
        }
        return ReplySpec(
            records, strategy.train_metrics, strategy.check_reply, server_round=self._round, kind=exchange.kind
        )

    def abandon(self, reason: str) -> None:
        """Undo and record the attempt, which got too few replies."""
        strategy = self._strategy
        load_named_state(strategy, self._before)
        strategy.clients.admission.history = self._norms_before
        row = strategy.round_log.close() | {"phase": "abandoned", "round": self._round, "attempt": strategy.attempt}
        strategy.recorder.append(row | {"reason": reason})

    def _images(self, reply: Reply) -> float:
        """Return a client's compute; it cannot claim more steps than the config has."""
        strategy, size = self._strategy, reply.num_examples
        most, claimed = strategy.config.training.steps_for(size), reply.number("steps")
        steps = most if math.isnan(claimed) else int(min(max(0.0, claimed), most))
        is_first = strategy.clients.state_rounds.get(reply.partition_id, 0) == 0
        images = strategy.hook.training_images(strategy.config, size, steps, is_first=is_first)
        return images * strategy.compute_of_round(strategy.config, self._round)

    def _with_quorum(self, replies: Iterator[Reply], stream: ReplyStream, accepted: list[Reply]) -> Iterator[Reply]:
        """Yield the replies; after the last one, raise ``TooFewRepliesError`` if they are fewer than ``min-replies``.

        ``aggregate`` thus does not change the algorithm's state in a round that is abandoned.
        """
        for reply in replies:
            self._strategy.accounting.images += self._images(reply)
            yield reply
            del reply
        self._strategy.clients.declined |= stream.declined
        quorum = self.quorum()
        if len(accepted) < quorum:
            self._strategy.round_log.add(stream.left_out("train"))
            raise stream.too_few(len(accepted), quorum)


def _pack_parts(strategy: "FederatedStrategy", arrays: ArrayRecord) -> tuple[set[str], dict[int, Part]]:
    """Return the weights for each client that does not exchange all, and the names of their records in the outbox.

    Weights that go to several clients are packed once.
    """
    weights, names = to_weights(arrays), set[str]()
    by_key: dict[Hashable, Part] = {}
    starts = dict.fromkeys(id(strategy.exchanges[partition].start) for partition in strategy.sampled)
    places = {start: "" if start == id(None) else f"-{place}" for place, start in enumerate(starts)}
    exchanges = {partition: strategy.exchanges[partition] for partition in strategy.sampled}
    for each in {each.key: each for each in exchanges.values() if not each.is_whole}.values():
        values = each.start or weights
        sent = [name for name in weights if each.sent is None or name in each.sent]
        record = f"{kind_of(each.sent)}{places[id(each.start)]}"
        part = values if each.sent is None else weights_module.select(values, sent)
        packed = strategy.outbox.pack(record, each.start or arrays, part)
        names.add(record)
        by_key[each.key] = Part(packed, tuple(name for name in weights if name in (each.returned or ())))
    return names, {partition: by_key[each.key] for partition, each in exchanges.items() if not each.is_whole}
