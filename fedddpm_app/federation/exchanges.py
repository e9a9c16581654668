"""The two exchanges of a round with its clients: their training, and the evaluation on their held-out images."""

import math
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, Message, MessageType, MetricRecord

from fedddpm_app import weights as weights_module
from fedddpm_app.config import is_due
from fedddpm_app.federation.accounting import Span
from fedddpm_app.federation.participants import is_deployed
from fedddpm_app.federation.records import ARRAYS, to_weights
from fedddpm_app.federation.replies import Reply, ReplySpec
from fedddpm_app.federation.server_state import load_named_state
from fedddpm_app.federation.streaming import ReplyStream, collecting, with_progress
from fedddpm_app.weights import Weights

if TYPE_CHECKING:
    from fedddpm_app.federation.strategy import FederatedStrategy


class Training:
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
        self._starts: Mapping[int, Weights] = {}

    def messages(self, arrays: ArrayRecord) -> list[Message]:
        """Sample the round's clients, and return the messages with the weights for them."""
        strategy, server_round = self._strategy, self._round
        run, num_clients = strategy.config.run, strategy.config.data.num_clients
        participants = strategy.clients.participants
        strategy.round_log.begin(server_round, [], [])
        quorum = strategy.config.waiting.quorum(run.clients_per_round or num_clients)
        strategy.clients.present(quorum if strategy.trains_on_clients else 0)
        strategy.sampled = participants.sample(run.clients_per_round, run.seed, server_round, strategy.attempt)
        strategy.round_log.begin(server_round, strategy.sampled, participants.absent(num_clients))
        if not strategy.trains_on_clients:
            return []
        extra, starts = strategy.broadcast(server_round), strategy.start_weights(server_round)
        self._starts = {p: starts[p] for p in strategy.sampled if p in starts}
        for weights in self._starts.values():
            weights_module.check_match(strategy.initial_weights, weights)
        return _address(strategy, MessageType.TRAIN, strategy.sampled, arrays, server_round, extra, self._starts)

    def aggregate(self, replies: Iterable[Message]) -> tuple[Weights, MetricRecord]:
        """Return the aggregated weights and the mean metrics of the accepted replies."""
        strategy, server_round, expect = self._strategy, self._round, self._strategy.transport.expect
        records = {
            name: expect(reference, strategy.global_weights if name == ARRAYS else None)
            for name, reference in strategy.reply_references.items()
        }
        spec = ReplySpec(records, strategy.train_metrics, strategy.check_reply, server_round=server_round)
        specs = self._specs_of_starts(spec)
        stream = ReplyStream(strategy.clients, replies, strategy.sampled, f"round {server_round}", spec, specs)
        accepted: list[Reply] = []
        in_order = collecting(stream.by_partition(strategy.recorder.scratch), accepted)
        in_order = self._with_quorum(in_order, stream, accepted)
        if is_deployed(strategy.grid.run):
            in_order = with_progress(in_order, "train", server_round, strategy.config.run.num_rounds)
        weights = strategy.aggregate(server_round, in_order)
        for _ in in_order:  # replies that the algorithm did not read are checked and counted too
            continue
        contents = [reply.message.content for reply in accepted]
        metrics = strategy.train_metrics_aggr_fn(contents, strategy.weighted_by_key)
        strategy.train_loss = float(metrics["loss"])  # type: ignore[arg-type]
        strategy.clients.state_rounds |= {reply.partition_id: server_round for reply in accepted}
        strategy.round_log.add_replies(accepted, metrics)
        strategy.round_log.add(stream.left_out("train"))
        return weights_module.cast_like(weights, strategy.initial_weights), metrics

    def _specs_of_starts(self, spec: ReplySpec) -> dict[int, ReplySpec]:
        """Return what a reply must be, by partition, where a client's change is measured from its own start."""
        reference = self._strategy.reply_references[ARRAYS]
        distinct = {id(start): start for start in self._starts.values()}
        specs = {
            key: replace(spec, records={**spec.records, ARRAYS: self._strategy.transport.expect(reference, start)})
            for key, start in distinct.items()
        }
        return {partition: specs[id(start)] for partition, start in self._starts.items()}

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
        return strategy.hook.training_images(strategy.config, size, steps, is_first=is_first)

    def _with_quorum(self, replies: Iterator[Reply], stream: ReplyStream, accepted: list[Reply]) -> Iterator[Reply]:
        """Yield the replies; after the last one, raise ``TooFewRepliesError`` if they are fewer than ``min-replies``.

        ``aggregate`` thus does not change the algorithm's state in a round that is abandoned.
        """
        for reply in replies:
            self._strategy.accounting.images += self._images(reply)
            yield reply
            del reply
        quorum = self._strategy.config.waiting.quorum(len(self._strategy.sampled))
        if len(accepted) < quorum:
            self._strategy.round_log.add(stream.left_out("train"))
            raise stream.too_few(len(accepted), quorum)


class Evaluation:
    """The evaluation of a round's weights by its clients, if it is due.

    Parameters
    ----------
    strategy : FederatedStrategy
        The algorithm.
    server_round : int
        From 1.
    """

    def __init__(self, strategy: "FederatedStrategy", server_round: int) -> None:
        config = strategy.config
        due = is_due(config.evaluation.eval_every, server_round, config.run.num_rounds)
        wanted = due and config.data.held_out_fraction > 0
        self._asked = [p for p in strategy.clients.present() if p in strategy.sampled] if wanted else []
        self._strategy = strategy
        self._round = server_round
        self._span = Span(strategy.accounting)

    def messages(self, arrays: ArrayRecord) -> list[Message]:
        """Return the messages with the weights for the round's clients."""
        return _address(self._strategy, MessageType.EVALUATE, self._asked, arrays, self._round, {})

    def accepted(self, replies: Iterable[Message]) -> list[Message]:
        """Return the checked replies, in the order of the partition ids."""
        strategy, name = self._strategy, f"evaluation of round {self._round}"
        spec = ReplySpec(metrics=strategy.evaluate_metrics, held_out=True, server_round=self._round)
        stream = ReplyStream(strategy.clients, replies, self._asked, name, spec)
        accepted = stream.answers()
        strategy.round_log.add(stream.left_out("client-eval"))
        strategy.accounting.seconds["evaluate"] += self._span.spent("s")["s"]
        return [reply.message for reply in accepted]


def _address(
    strategy: "FederatedStrategy",
    message_type: str,
    partitions: list[int],
    arrays: ArrayRecord,
    server_round: int,
    extra: Mapping[str, Weights],
    starts: Mapping[int, Weights] = types.MappingProxyType({}),
) -> list[Message]:
    """Return one message for each partition, with the weights, or those of ``starts``, and the ``extra`` records."""
    if not partitions:
        return []
    pack = strategy.outbox.pack
    place = {key: place for place, key in enumerate(dict.fromkeys(id(start) for start in starts.values()))}
    own = {p: pack(f"{ARRAYS}-{place[id(start)]}", start, start) for p, start in starts.items()}
    all_own = len(own) == len(partitions)
    records = {} if all_own else {ARRAYS: pack(ARRAYS, arrays, to_weights(arrays))}
    records |= {name: pack(name, weights, weights) for name, weights in extra.items()}
    timeout = strategy.config.waiting.round_timeout
    address = strategy.clients.address
    return address(partitions, message_type, records, server_round, timeout, with_states=True, own=own)
