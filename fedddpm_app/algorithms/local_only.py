"""Local-only training: the lower bound, in which clients share nothing. A control, not a federation.

    Round r    w_i <- K local steps on L(.; D_i) from w_i, for i in S_r;  w_i = w at the start

Symbols: w -> the initial weights, w_i -> the client's own model, kept by it over rounds.
Every client takes as many gradient steps as in FedAvg. There is no global model: metrics are means over the clients'
models, each of which is evaluated alone, and pictures and pipelines are one per client. The clients send their models
so that the server can do that; it counts as communication although none of it comes back.
Deviations: the strategy gives out the initial weights in every round, for clients that come late; what it ends with,
and ``simulate`` returns, is the mean by n_i of the clients' models.
"""

from collections.abc import Callable, Iterator
from typing import Any

from fedddpm_app import weights as weights_module
from fedddpm_app.federation.replies import Reply
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.training.hooks import TrainingHook, TrainResult
from fedddpm_app.weights import Weights

MODEL = "model"


class LocalOnlyHook(TrainingHook):
    """Goes on from the client's own model."""

    keeps_state = True

    def start_weights(self) -> Weights:
        """Return w_i; before the first round the initial weights."""
        return self.round.state.get(MODEL, self.round.global_weights)

    def on_end(self, result: TrainResult, full_gradient: Callable[[Weights], Weights]) -> None:
        """Keep w_i."""
        self.kept[MODEL] = result.weights


class LocalOnly(FederatedStrategy):
    """Collects the clients' models and gives none of them out."""

    hook = LocalOnlyHook
    own_aggregation = "local-only training aggregates nothing"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sizes: dict[int, int] = {}

    def aggregate(self, server_round: int, replies: Iterator[Reply]) -> Weights:
        """Take the clients' models, for evaluation; give out nothing of them, but for their mean at the end."""
        for reply in replies:
            self.client_models[reply.partition_id] = weights_module.copy(reply.load())
            self._sizes[reply.partition_id] = reply.num_examples
        if server_round < self.config.run.num_rounds:
            return self.initial_weights
        return weights_module.weighted_mean((w, self._sizes[i]) for i, w in sorted(self.client_models.items()))
