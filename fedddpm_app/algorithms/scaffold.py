"""SCAFFOLD: Stochastic Controlled Averaging for Federated Learning.

Sai Praneeth Karimireddy, Satyen Kale, Mehryar Mohri, Sashank J. Reddi, Sebastian U. Stich, Ananda Theertha Suresh.
ICML 2020. https://arxiv.org/abs/1910.06378, Algorithm 1 (line numbers below) and equations (3) to (5).

    Start      c = c_i = 0
    Client i   v <- w;  K times  v <- v - eta (g_i(v) - c_i + c)                               line 10, (3)
               c_i+ <- I: gradient of L(w; D_i)   II: c_i - c + (w - v) / (K eta)              line 12, (4)
               send dw_i = v - w, dc_i = c_i+ - c_i;  c_i <- c_i+                              line 13
    Server     w <- w + eta_g / |S| sum dw_i;  c <- c + 1/N sum_{i in S} dc_i                  lines 16-17, (5)

Symbols: w (x) -> global_weights, c -> server_variate, c_i -> control_variate, v_k -> the weights before the k-th local
step, eta_g -> scaffold-server-learning-rate, N -> num-clients, option -> scaffold-option.
Deviations: clients send v, from which the server computes dw_i. All clients have equal weight, as in the paper,
whatever their number of examples. The paper writes Option II as c_i - c + (w - v) / (K eta), which for its optimiser,
plain SGD with a constant rate, is the mean of the local steps' gradients. Only the mean is the same quantity for every
optimiser, schedule, clipping and weight decay. With any other than plain SGD, the correction is added to the gradient
that the optimiser sees: a heuristic, not the paper's theorem. Option I draws t and noise once per example. Buffers that
have no gradient are averaged.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from flwr.serverapp import Grid
from torch import nn

from fedddpm_app import weights as weights_module
from fedddpm_app.config import Config
from fedddpm_app.federation.messages.replies import Reply
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.training.hooks import TrainingHook, TrainResult
from fedddpm_app.training.optimization import add_to_gradients, gradients_of
from fedddpm_app.weights import RunningMean, Weights

VARIATE = "control-variate"
VARIATE_CHANGE = "control-variate-change"


class ScaffoldHook(TrainingHook):
    """Corrects every local gradient by c - c_i, then updates c_i."""

    keeps_state = True

    @classmethod
    def training_images(cls, config: Config, num_examples: int, steps: int, *, is_first: bool) -> float:
        """Add Option I's gradient over all images."""
        own = num_examples if config.scaffold.option == "I" else 0
        return super().training_images(config, num_examples, steps, is_first=is_first) + own

    @classmethod
    def why_not_private(cls, config: Config) -> str:
        """Return that Option II can: it is the mean of gradients that have been made private."""
        if config.scaffold.option != "I":
            return ""
        return (
            "Option I of its control variates is the gradient of all a client's images, without noise; use "
            'scaffold-option = "II"'
        )

    def initial_variate(self) -> Weights:
        """Return c_i before the client's first round: zero."""
        return weights_module.zeros_like(self.round.received[VARIATE])

    def on_start(self, model: nn.Module) -> None:
        """Compute c - c_i on the model's device."""
        self.server_variate = self.round.received[VARIATE]
        self.control_variate = self.round.state.get(VARIATE) or self.initial_variate()
        difference = weights_module.add_scaled(self.server_variate, self.control_variate, -1.0)
        named = dict(model.named_parameters())
        self._names = list(difference)
        self._parameters = [named[name] for name in self._names]
        self._correction = [d.to(p.device) for d, p in zip(difference.values(), self._parameters, strict=True)]
        needs_sums = self.config.scaffold.option != "I"
        self._gradient_sums = [torch.zeros_like(parameter) for parameter in self._parameters] if needs_sums else []

    @torch.no_grad()
    def adjust_gradients(self, model: nn.Module) -> None:
        """Add c - c_i (line 10), and the gradient before that to the sum of Option II."""
        if self._gradient_sums:
            torch._foreach_add_(self._gradient_sums, gradients_of(self._parameters))
        add_to_gradients(self._parameters, self._correction)

    def on_end(self, result: TrainResult, full_gradient: Callable[[Weights], Weights]) -> None:
        """Update c_i (line 12), keep it and send its change (line 13)."""
        if self.config.scaffold.option == "I":
            renewed = weights_module.select(full_gradient(self.round.global_weights), self._names)
        else:
            means = [(total / result.steps).cpu().contiguous() for total in self._gradient_sums]
            renewed = dict(zip(self._names, means, strict=True))
        self.kept[VARIATE] = renewed
        self.sent[VARIATE_CHANGE] = weights_module.add_scaled(renewed, self.control_variate, -1.0)


class Scaffold(FederatedStrategy):
    """SCAFFOLD's server half.

    Attributes
    ----------
    server_variate : Weights
        c, by parameter name; set in ``prepare``.
    """

    hook = ScaffoldHook
    key_prefix = "scaffold-"
    state_attributes = ("server_variate",)
    models_per_exchange = 2  # with c, and with the change of c_i
    own_aggregation = "SCAFFOLD's server moves weights and control variate together, by the mean of all clients"

    def prepare(self, grid: Grid, weights: Weights) -> Weights:
        """Start with c = 0."""
        self.server_variate = weights_module.zeros_like(weights_module.select(weights, self.parameters.unique))
        self.reply_references[VARIATE_CHANGE] = self.server_variate
        return weights

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue with c of a checkpoint."""
        super().load_state(state)
        self.reply_references[VARIATE_CHANGE] = self.server_variate

    def broadcast(self, server_round: int) -> Mapping[str, Weights]:
        """Send c to the clients."""
        return {VARIATE: self.server_variate}

    def aggregate(self, server_round: int, replies: Iterator[Reply]) -> Weights:
        """Update w and c (lines 16 and 17)."""
        models, changes = RunningMean(), RunningMean()
        for reply in replies:
            models.fold(reply.load(), 1.0)
            changes.fold(reply.load(VARIATE_CHANGE), 1.0)
        share = models.total / self.config.data.num_clients
        self.server_variate = weights_module.add_scaled(self.server_variate, changes.result(), share)
        mean = models.result()
        return self.parameters.replace(
            mean, weights_module.lerp(self.global_weights, mean, self.config.scaffold.server_learning_rate)
        )
