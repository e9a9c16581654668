"""A custom client-side regulariser: FedProx with the absolute distance to the global model.

    Client i   w_i <- K local steps on L(v; D_i) + strength * sum |v - w| from w
    Server     as FedAvg

Most weights stay at their values in the global model, so clients move few of them. Set the factor in the run config as
algorithm-options = "strength=0.0001".
"""

from torch import Tensor, nn

from fedddpm_app import Batch, FederatedStrategy, TrainingHook


class L1ProximalHook(TrainingHook):
    """The client half; a new object for every round of every client."""

    def on_start(self, model: nn.Module) -> None:
        """Keep w."""
        self.anchor = [parameter.detach().clone() for parameter in model.parameters()]

    def add_to_loss(self, loss: Tensor, model: nn.Module, batch: Batch) -> Tensor:
        """Add the term; the reported loss stays L."""
        distance = sum((v - w).abs().sum() for v, w in zip(model.parameters(), self.anchor, strict=True))
        return loss + float(self.config.run.options.get("strength", 1e-4)) * distance


class L1Proximal(FederatedStrategy):
    """The server half, which is the same as in FedAvg."""

    hook = L1ProximalHook
