"""The evaluation of a round's weights by its clients, on their held-out images."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, Message, MessageType

from fedddpm_app.config import is_due
from fedddpm_app.federation.accounting import Span
from fedddpm_app.federation.messages.records import ARRAYS, to_weights
from fedddpm_app.federation.messages.replies import ReplySpec
from fedddpm_app.federation.messages.streaming import ReplyStream
from fedddpm_app.federation.privacy.examples import is_private

if TYPE_CHECKING:
    from fedddpm_app.federation.strategy import FederatedStrategy


_NOTHING = "nothing"  # the record in the place of the weights, where none are sent


class RoundEvaluation:
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
        wanted = due and strategy.evaluates_on_clients and config.data.held_out_fraction > 0
        wanted = wanted and not is_private(type(strategy), config)  # a loss on a client's images has no noise
        self._asked = [p for p in strategy.clients.present() if p in strategy.sampled] if wanted else []
        self._is_global = strategy.has_global_model(config)
        if not self._is_global:  # a client whose trainings have all failed has no model yet
            trained = strategy.clients.state_rounds
            self._asked = [partition for partition in self._asked if trained.get(partition, 0) > 0]
        self._strategy = strategy
        self._round = server_round
        self._span = Span(strategy.accounting)

    def messages(self, arrays: ArrayRecord) -> list[Message]:
        """Return the messages with the weights for the round's clients; without a global model, they have their own."""
        if not self._asked:
            return []
        pack = self._strategy.outbox.pack
        packed = pack(ARRAYS, arrays, to_weights(arrays)) if self._is_global else pack(_NOTHING, None, {})
        timeout, address = self._strategy.config.waiting.round_timeout, self._strategy.clients.address
        with self._strategy.accounting.evaluating():
            return address(self._asked, MessageType.EVALUATE, {ARRAYS: packed}, self._round, timeout, with_states=True)

    def accepted(self, replies: Iterable[Message]) -> list[Message]:
        """Return the checked replies, in the order of the partition ids."""
        strategy, name = self._strategy, f"evaluation of round {self._round}"
        spec = ReplySpec(metrics=strategy.evaluate_metrics, held_out=True, server_round=self._round)
        stream = ReplyStream(strategy.clients, replies, self._asked, name, spec)
        accepted = stream.answers()
        strategy.round_log.add(stream.left_out("client-eval"))
        strategy.accounting.seconds["evaluate"] += self._span.spent("s")["s"]
        return [reply.message for reply in accepted]
