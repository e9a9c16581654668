"""FedProx: Federated Optimization in Heterogeneous Networks.

Tian Li, Anit Kumar Sahu, Manzil Zaheer, Maziar Sanjabi, Ameet Talwalkar, Virginia Smith. MLSys 2020.
https://arxiv.org/abs/1812.06127, Algorithm 2 and equation (2).

    Client i   w_i <- K local steps on h_i(v) = L(v; D_i) + mu/2 ||v - w||^2 from w          (2)
    Server     w <- aggregation of the w_i, as FedAvg

Symbols: w -> global_weights, v -> model parameters, mu -> fedprox-mu.
Deviations: the paper samples clients with probabilities n_i / n and averages them uniformly; here they are sampled
uniformly and averaged by n_i, as is usual. A fixed number of steps replaces the gamma-inexact solution. The term's
gradient mu (v - w) is added in closed form, so that the reported loss stays L.
"""

from torch import nn

from fedddpm_app.config import Config
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.training.hooks import TrainingHook
from fedddpm_app.training.optimization import pull_to


class FedProxHook(TrainingHook):
    """Pulls the local model back to the global one."""

    @classmethod
    def why_not_private(cls, config: Config) -> str:
        """Return that it can: mu (v - w) follows from the model and the global weights."""
        return ""

    def on_start(self, model: nn.Module) -> None:
        """Store w on the model's device."""
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._anchor = [p.detach().clone() for p in self._parameters]

    def adjust_gradients(self, model: nn.Module) -> None:
        """Add mu (v - w), the gradient of mu/2 ||v - w||^2."""
        pull_to(self._parameters, self._anchor, self.config.fedprox.mu)


class FedProx(FederatedStrategy):
    """FedProx's server half, which is FedAvg's."""

    hook = FedProxHook
    key_prefix = "fedprox-"
