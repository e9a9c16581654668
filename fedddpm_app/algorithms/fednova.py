"""FedNova: Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization.

Jianyu Wang, Qinghua Liu, Hao Liang, Gauri Joshi, H. Vincent Poor. NeurIPS 2020.
https://arxiv.org/abs/2007.07481, equations (7) to (10) and section 4.

    Client i   w_i <- tau_i local steps on L(.; D_i) from w;  d_i = (w - w_i) / ||a_i||_1
    Server     w <- w - tau_eff sum p_i d_i,   tau_eff = sum p_i ||a_i||_1,   p_i = n_i / sum_{j in S} n_j

Symbols: w (x) -> global_weights, p_i -> from num_examples. ``eta d_i`` of the paper is d_i here. ||a_i||_1 is tau_i for
plain SGD at a constant learning rate; for momentum and schedules (section 4) the server computes it from tau_i.
Deviations: for Adam and AdamW, which the paper does not treat, ||a_i||_1 is that of SGD without momentum. Clients send
w_i, from which the server computes d_i. Buffers that have no gradient are averaged by n_i. With equal steps (a fixed
``local-steps``) the algorithm is FedAvg; with ``local-epochs``, clients with more data take more steps.
"""

from collections.abc import Iterator

from fedddpm_app import weights as weights_module
from fedddpm_app.federation.messages.replies import Reply, ReplyRefusedError
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.training.optimization import gradient_weight, learning_rate_factor
from fedddpm_app.weights import RunningMean, Weights


class FedNova(FederatedStrategy):
    """FedNova's server half: a client's move is divided by its steps. The client half is plain local training."""

    own_aggregation = "FedNova's server step is a mean of moves per local step"

    def check_reply(self, reply: Reply) -> None:
        """Refuse a number of steps that the client cannot have taken, since its move is divided by this number."""
        steps, most = reply.number("steps"), self.config.training.steps_for(reply.num_examples)
        if not 1 <= steps <= most or steps != int(steps):
            raise ReplyRefusedError(f"steps is {steps}, not a whole number from 1 to {most}")

    def aggregate(self, server_round: int, replies: Iterator[Reply]) -> Weights:
        """Step by tau_eff times the mean move per step, which is a step towards a mean of the w_i."""
        mean, per_step, tau_sum = RunningMean(), RunningMean(), 0.0
        for reply in replies:
            weights, norm = reply.load(), self.gradient_weight(int(reply.number("steps")))
            mean.fold(weights, reply.num_examples)
            per_step.fold(weights, reply.num_examples / norm)
            tau_sum += reply.num_examples * norm
        step = tau_sum / mean.total * per_step.total / mean.total  # tau_eff times the sum of p_i / ||a_i||_1
        return self.parameters.replace(mean.result(), weights_module.lerp(self.global_weights, per_step.result(), step))

    def gradient_weight(self, steps: int) -> float:
        """Return ||a_i||_1 of a client that took ``steps`` steps."""
        training = self.config.training
        plan = (training.learning_rate_schedule, training.warmup_steps, steps)
        return gradient_weight([learning_rate_factor(step, *plan) for step in range(steps)], training.momentum)
