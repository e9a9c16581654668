"""A client-side regulariser of one's own: FedProx with the absolute distance to the global model.

    Client i   w_i <- K local steps on L(v; D_i) + strength * sum |v - w| from w
    Server     as FedAvg

It leaves most weights where the global model has them, so that clients move few of them. Run it with
--run-config 'algorithm="examples.l1_proximal:L1Proximal" algorithm-options="strength=0.0001"'
"""

from torch import Tensor, nn

from fedddpm_app import Batch, FederatedStrategy, TrainingHook


class L1ProximalHook(TrainingHook):
    """The client half: made anew for every round of every client."""

    def on_start(self, model: nn.Module) -> None:
        """Keep w."""
        self.anchor = [parameter.detach().clone() for parameter in model.parameters()]

    def add_to_loss(self, loss: Tensor, model: nn.Module, batch: Batch) -> Tensor:
        """Add the term; what is reported stays L."""
        distance = sum((v - w).abs().sum() for v, w in zip(model.parameters(), self.anchor, strict=True))
        return loss + float(self.config.run.options.get("strength", 1e-4)) * distance


class L1Proximal(FederatedStrategy):
    """The server half: FedAvg's."""

    hook = L1ProximalHook
