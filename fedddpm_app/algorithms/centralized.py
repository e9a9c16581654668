"""Centralised training: all clients' data in one place. A control, not a federation.

    Round r    w <- sum_{i in S_r} K_i steps on L(.; union of all D_i) from w, on the server

Symbols: K_i -> the steps that client i would have taken in the round, so that the run takes as many gradient steps
as a FedAvg run. Learning rate, batch size and schedule are those of the clients; the schedule restarts in each "round".
Deviations: the optimiser's state is kept over rounds, because rounds are only the points of measurement here. The
server reads the clients' data itself: this needs one machine that may see all of them.
"""

from collections.abc import Sequence

from fedddpm_app import progress
from fedddpm_app.config import Config
from fedddpm_app.device import cpu_threads
from fedddpm_app.federation.cost import Cost
from fedddpm_app.federation.nodes.participants import sample_partitions
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.seeding import derive_seed
from fedddpm_app.weights import Weights


class Centralized(FederatedStrategy):
    """Trains on the server; clients only evaluate."""

    own_aggregation = "centralised training aggregates nothing"
    trains_on_clients = False

    @classmethod
    def cost(cls, config: Config, sizes: Sequence[int]) -> Cost:
        """Return the clients' steps; without a batch size, each is a step on all images."""
        cost = super().cost(config, sizes)
        return cost if config.training.batch_size else Cost(cost.steps * len(sizes))

    def after_aggregation(self, server_round: int, weights: Weights) -> Weights:
        """Train on the pooled data, as many steps as the round's clients would take, connected or not."""
        run = self.config.run
        clients = sample_partitions(range(self.config.data.num_clients), run.clients_per_round, run.seed, server_round)
        with self.accounting.timed("train"), cpu_threads(run.server_threads):
            result = self.trainer.train(
                weights,
                self.task.pooled_data(),
                steps=sum(self.task.local_steps(partition) for partition in clients),
                seed=derive_seed(run.seed, "centralized", server_round),
                keep_optimizer=True,
                on_report=progress.reporter("train", server_round=server_round, num_rounds=run.num_rounds),
            )
        self.accounting.images += result.steps * (self.config.training.batch_size or len(self.task.pooled_data()))
        self.record(**{"train/loss": result.loss, "train/final_loss": result.final_loss, "train/steps": result.steps})
        return result.weights
