"""FedNova: Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization.

Jianyu Wang, Qinghua Liu, Hao Liang, Gauri Joshi, H. Vincent Poor. NeurIPS 2020.
https://arxiv.org/abs/2007.07481, equations (7) to (10) and section 4.

    Client i   w_i <- tau_i local steps on L(.; D_i) from w;  d_i = (w - w_i) / ||a_i||_1
    Server     w <- w - tau_eff sum p_i d_i,   tau_eff = sum p_i ||a_i||_1,   p_i = n_i / sum_{j in S} n_j

Symbols: w (x) -> global_weights, ||a_i||_1 -> gradient_weight, p_i -> from num_examples. ``eta d_i`` of the paper is
d_i here. ||a_i||_1 is tau_i for plain SGD, and counts momentum and the learning rate's schedule (section 4).
Deviations: for Adam and AdamW, which the paper does not treat, ||a_i||_1 counts the steps. Clients send w_i, from
which the server takes d_i.
"""

from collections.abc import Callable, Sequence

from fedddpm_app import weights as weights_module
from fedddpm_app.federation.base import FederatedDiffusion
from fedddpm_app.federation.replies import Reply, ReplyRefusedError
from fedddpm_app.hooks import TrainingHook, TrainResult
from fedddpm_app.weights import Weights

GRADIENT_WEIGHT = "gradient-weight"


class FedNovaHook(TrainingHook):
    """Tells how often the client has taken its gradients in."""

    def on_end(self, result: TrainResult, full_gradient: Callable[[Weights], Weights]) -> None:
        """Send ||a_i||_1."""
        self.metrics[GRADIENT_WEIGHT] = result.gradient_weight


class FedNova(FederatedDiffusion):
    """FedNova's server half: every client's move counts per step."""

    hook = FedNovaHook
    own_aggregation = "FedNova's server step is a mean of moves per local step"
    train_metrics = (*FederatedDiffusion.train_metrics, GRADIENT_WEIGHT)

    def check_reply(self, reply: Reply) -> None:
        """Refuse a weight that no training can have: it divides the client's move."""
        weight, steps = reply.number(GRADIENT_WEIGHT), reply.number("steps")
        if not weight > 0 or steps < 1:
            raise ReplyRefusedError(f"{GRADIENT_WEIGHT} is {weight} after {steps} steps, not positive")

    def aggregate(self, server_round: int, replies: Sequence[Reply]) -> Weights:
        """Step by tau_eff times the mean move per step, which is a step to a mean of the w_i."""
        total = sum(reply.num_examples for reply in replies)
        shares = [reply.num_examples / total for reply in replies]
        taus = [reply.number(GRADIENT_WEIGHT) for reply in replies]
        tau_eff = sum(p * tau for p, tau in zip(shares, taus, strict=True))
        factors = [p / tau for p, tau in zip(shares, taus, strict=True)]
        mean = weights_module.weighted_mean((r.load(), f) for r, f in zip(replies, factors, strict=True))
        return weights_module.lerp(self.global_weights, mean, tau_eff * sum(factors))
