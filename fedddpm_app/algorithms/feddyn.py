"""FedDyn: Federated Learning Based on Dynamic Regularization.

Durmus Alp Emre Acar, Yue Zhao, Ramon Matas Navarro, Matthew Mattina, Paul N. Whatmough, Venkatesh Saligrama.
ICLR 2021. https://arxiv.org/abs/2111.04263, Algorithm 1 and equation (1).

    Start      h = lam_i = 0
    Client i   w_i <- K local steps on L(v; D_i) - <lam_i, v> + alpha/2 ||v - w||^2 from w    (1)
               lam_i <- lam_i - alpha (w_i - w)
    Server     h <- h - alpha/N sum_{i in S} (w_i - w);  w <- mean_{i in S} w_i - h / alpha

Symbols: w (theta) -> global_weights, lam_i (gradient of L_i at theta_i) -> dual, h -> server_dual,
alpha -> feddyn-alpha, N -> num-clients.
Deviations: a fixed number of steps replaces the exact local minimiser. All clients have equal weight, as in the paper.
The regulariser's gradient is added in closed form, so that the reported loss stays L. Buffers that have no gradient are
averaged.
"""

from collections.abc import Callable, Iterator

from flwr.serverapp import Grid
from torch import nn

from fedddpm_app import weights as weights_module
from fedddpm_app.config import Config
from fedddpm_app.federation.messages.replies import Reply
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.training.hooks import TrainingHook, TrainResult
from fedddpm_app.training.optimization import add_to_gradients, pull_to
from fedddpm_app.weights import RunningMean, Weights

DUAL = "dual"


class FedDynHook(TrainingHook):
    """Adds the dynamic regulariser, whose linear part depends on the client's moves in earlier rounds."""

    keeps_state = True

    @classmethod
    def why_not_private(cls, config: Config) -> str:
        """Return that it can: lam_i and the regulariser follow from global weights and privately trained ones."""
        return ""

    def on_start(self, model: nn.Module) -> None:
        """Store w and lam_i on the model's device."""
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._parameters = list(named.values())
        self._anchor = [p.detach().clone() for p in self._parameters]
        zero = weights_module.zeros_like(weights_module.select(self.round.global_weights, named))
        self.dual = self.round.state.get(DUAL) or zero
        self._dual = [self.dual[name].to(p.device) for name, p in named.items()]

    def adjust_gradients(self, model: nn.Module) -> None:
        """Add alpha (v - w) - lam_i, the gradient of -<lam_i, v> + alpha/2 ||v - w||^2."""
        pull_to(self._parameters, self._anchor, self.config.feddyn.alpha)
        add_to_gradients(self._parameters, self._dual, -1.0)

    def on_end(self, result: TrainResult, full_gradient: Callable[[Weights], Weights]) -> None:
        """Update lam_i: at the exact minimiser it equals the gradient of L there."""
        start = weights_module.select(self.round.global_weights, self.dual)
        moved = weights_module.add_scaled(weights_module.select(result.weights, self.dual), start, -1.0)
        self.kept[DUAL] = weights_module.add_scaled(self.dual, moved, -self.config.feddyn.alpha)


class FedDyn(FederatedStrategy):
    """FedDyn's server half.

    Attributes
    ----------
    server_dual : Weights
        h, by parameter name; set in ``prepare``.
    """

    hook = FedDynHook
    key_prefix = "feddyn-"
    state_attributes = ("server_dual",)
    own_aggregation = "FedDyn's server step is the mean of all clients, shifted by their accumulated moves"

    def prepare(self, grid: Grid, weights: Weights) -> Weights:
        """Start with h = 0."""
        self.server_dual = weights_module.zeros_like(weights_module.select(weights, self.parameters.unique))
        return weights

    def aggregate(self, server_round: int, replies: Iterator[Reply]) -> Weights:
        """Update h, and shift the clients' mean by it."""
        alpha, names = self.config.feddyn.alpha, self.parameters.unique
        models = RunningMean()
        for reply in replies:
            models.fold(reply.load(), 1.0)
        share, mean = models.total / self.config.data.num_clients, models.result()
        mean_parameters = weights_module.select(mean, names)
        start = weights_module.select(self.global_weights, names)
        moved = weights_module.add_scaled(mean_parameters, start, -1.0)
        self.server_dual = weights_module.add_scaled(self.server_dual, moved, -alpha * share)
        return self.parameters.replace(mean, weights_module.add_scaled(mean_parameters, self.server_dual, -1.0 / alpha))
