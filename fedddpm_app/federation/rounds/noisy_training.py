"""The training of a round with differential privacy of clients: see ``privacy.clients`` for the mechanism.

``aggregate`` of the algorithm gets one reply, which is the noisy mean of the clients' clipped updates. The weights of a
round are known to nobody before the account says that they are spent.
"""

import math
from collections.abc import Iterable

import torch
from flwr.app import ArrayRecord, Message, MetricRecord

from fedddpm_app.config import ConfigError
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.messages.records import ARRAYS
from fedddpm_app.federation.messages.replies import Reply, mean_reply
from fedddpm_app.federation.rounds.training import RoundTraining
from fedddpm_app.progress import logger
from fedddpm_app.weights import Weights, cast_like


class NoisyTraining(RoundTraining):
    """One attempt at the training of a round, with a noisy mean; parameters as of ``RoundTraining``."""

    def messages(self, arrays: ArrayRecord) -> list[Message]:
        """Return the messages with the weights for the round's clients, if the budget suffices for the round."""
        self._check_weights()
        try:
            self._strategy.client_privacy.check_next()
        except ValueError as error:
            raise RoundFailedError(
                f"round {self._round}: {error}; to finish the run with weights that it has, resume it with "
                f"num-rounds = {self._round - 1}, or the round of its newest checkpoint"
            ) from error
        return super().messages(arrays)

    def sample(self) -> list[int]:
        """Return the connected clients that take part, each with probability q; there may be none."""
        strategy = self._strategy
        return strategy.client_privacy.sample(strategy.clients.present(), self._round, strategy.attempt)

    def asked(self) -> list[int]:
        """Return the sampled clients without those that declined: in their place, nobody else is asked."""
        return [partition for partition in self._strategy.sampled if partition not in self._strategy.clients.declined]

    def quorum(self) -> int:
        """Return 0: a round that is repeated would depend on who answered, and so would its sample."""
        return 0

    def note_declined(self) -> None:
        """Record the clients that are not asked any more."""
        if declined := sorted(self._strategy.clients.declined):
            self._strategy.record(declined=declined)

    def aggregate(self, replies: Iterable[Message]) -> tuple[Weights, MetricRecord]:
        """Return the aggregated weights, and the mean metrics of the clients whose updates are in the sum."""
        strategy, privacy = self._strategy, self._strategy.client_privacy
        accepted: list[Reply] = []
        stream, in_order = self.open(replies, accepted)
        total, num_small = self._clipped_sum(in_order)
        if not accepted:
            logger.warning("round %d: no client is in it, and noise alone changes the global weights", self._round)
        epsilon = privacy.spend(self._round)
        noisy, start = privacy.noisy_sum(total, self._round), strategy.global_weights
        mean = {name: start[name].double() + noisy[name] / privacy.expected for name in start}
        clipped = 1 - num_small / len(accepted) if accepted else 0.0
        strategy.record(**{"client-dp/epsilon": epsilon, "client-dp/clip": privacy.clip})
        strategy.record(**{"client-dp/clipped_share": clipped})
        privacy.adapt(num_small, len(accepted), self._round)
        reply = mean_reply(cast_like(mean, start), start, {}, max(1, sum(reply.num_examples for reply in accepted)))
        aggregated = strategy.aggregate(self._round, iter([reply]))
        finished = self.finish(aggregated, accepted, accepted, stream.left_out("train"))
        strategy.train_loss = math.nan  # it has no noise, which a result of the algorithm must have
        return finished

    def _clipped_sum(self, replies: Iterable[Reply]) -> tuple[Weights, int]:
        """Return the sum of the clipped updates, float64, and the number of those that the clip left as they were."""
        start, clip, num_small = self._strategy.global_weights, self._strategy.client_privacy.clip, 0
        total = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in start.items()}
        for reply in replies:
            update = {name: tensor.double() - start[name].double() for name, tensor in reply.load().items()}
            norm = float(torch.stack([each.norm() for each in update.values()]).norm())
            num_small += norm <= clip
            for name, each in update.items():
                total[name] += each * min(1.0, clip / max(norm, clip))
            del reply, update
        return total, num_small

    def _check_weights(self) -> None:
        """Raise ``ConfigError`` if clients return what the noise would not hide."""
        strategy = self._strategy
        name, dp = strategy.config.run.algorithm, strategy.config.client_dp
        given = f"client-dp-epsilon = {dp.epsilon}"
        if further := sorted(strategy.reply_references.keys() - {ARRAYS}):
            raise ConfigError(
                f'{given}: algorithm = "{name}" has clients send {further[0]} besides their weights, without noise; '
                "use another algorithm, or 0.0."
            )
        if others := sorted(name for name in strategy.global_weights if name not in strategy.parameters):
            raise ConfigError(
                f"{given}: {others[0]} is not a parameter that training changes by gradients, and noise would spoil "
                "it; use layers without buffers (GroupNorm instead of BatchNorm) and without frozen parameters, or 0.0."
            )
