"""Local-only training: no exchange between clients. A control, not a federation.

    Round r    w_i <- K local steps on L(.; D_i) from w_i, for i in S_r;  w_i = w at the start

Symbols: w -> the initial weights, w_i -> the client's own model, which the client keeps over rounds.
Every client takes as many gradient steps as in FedAvg. There is no global model: each client's model is evaluated
alone, metrics are means over these models, and every client has its own sample images and its own pipeline. The
clients send their models for this evaluation. The uploads count as communication, although the models are not sent
back.
Deviations: the strategy sends the initial weights in every round, for clients that join late. Its final weights, which
``simulate`` returns, are the mean of the clients' models, weighted by n_i.
"""

from collections.abc import Callable, Iterator
from typing import Any

from fedddpm_app import weights as weights_module
from fedddpm_app.config import Config
from fedddpm_app.federation.messages.replies import Reply
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.training.hooks import TrainingHook, TrainResult
from fedddpm_app.weights import Weights

MODEL = "model"


class LocalOnlyHook(TrainingHook):
    """Continues from the client's own model."""

    keeps_state = True

    @classmethod
    def why_not_private(cls, config: Config) -> str:
        """Return that it can: w_i was trained privately."""
        return ""

    def start_weights(self) -> Weights:
        """Return w_i; before the client's first round, the initial weights."""
        return self.round.state.get(MODEL, self.round.global_weights)

    def on_end(self, result: TrainResult, full_gradient: Callable[[Weights], Weights]) -> None:
        """Keep w_i for the next round."""
        self.kept[MODEL] = result.weights


class LocalOnly(FederatedStrategy):
    """Collects the clients' models, and sends none of them to clients."""

    hook = LocalOnlyHook
    own_aggregation = "local-only training aggregates nothing"
    state_attributes = ("_sizes",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sizes: dict[int, int] = {}

    @classmethod
    def has_global_model(cls, config: Config) -> bool:
        """Return False: every client has a model of its own."""
        return False

    @classmethod
    def keys_without_effect(cls, config: Config) -> dict[str, str]:
        """Add the average of the global model, which does not exist."""
        reason = 'algorithm = "local-only" has no global model'
        return super().keys_without_effect(config) | {"server-ema-decay": reason}

    def aggregate(self, server_round: int, replies: Iterator[Reply]) -> Weights:
        """Store the clients' models for evaluation; return the initial weights, in the last round the models' mean."""
        models, sizes = {}, {}
        for reply in replies:
            models[reply.partition_id] = weights_module.copy(reply.load())
            sizes[reply.partition_id] = reply.num_examples
        self.client_models, self._sizes = self.client_models | models, self._sizes | sizes
        if server_round < self.config.run.num_rounds:
            return self.initial_weights
        return weights_module.weighted_mean((w, self._sizes[i]) for i, w in sorted(self.client_models.items()))
