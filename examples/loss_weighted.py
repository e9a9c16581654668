"""Clients that answer an action: a client counts more if the global model denoises its images badly.

    Before round r   every sampled client answers L_i,b: the loss of w on its images, in each quarter b of the timesteps
    Server           w <- sum_i p_i w_i / sum_i p_i,   p_i = n_i f_i^q,   f_i = mean over b of L_i,b / median_j L_j,b

With q = 0 it is FedAvg. f_i is cut to [0.5, 2], since a client can answer any number. A client that does not answer is
weighted by n_i alone. Run it with
--run-config 'algorithm="examples.loss_weighted:LossWeighted" algorithm-options="q=2"'
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch

from fedddpm_app import ActionAnswer, ActionRequest, ClientAction, FederatedStrategy, Reply, RunningMean, Weights
from fedddpm_app.evaluation.denoising import NUM_BANDS, banded_denoising_loss
from fedddpm_app.training.task import Subset
from fedddpm_app.weights import load_into


def timestep_losses(request: ActionRequest) -> ActionAnswer:
    """Return, on a client, the loss of the received weights in each quarter of the timesteps."""
    load_into(request.trainer.model, request.weights)
    data = Subset.spread(request.task.train_data(request.partition_id), 64)
    loss = banded_denoising_loss(request.trainer.model, request.task.loss_fn, data, draws=NUM_BANDS)
    return ActionAnswer({"losses": loss.bands})


class LossWeighted(FederatedStrategy):
    """The server half: a mean weighted by examples and losses."""

    client_actions: ClassVar = {"timestep_losses": ClientAction(timestep_losses, lists={"losses": NUM_BANDS})}
    own_aggregation = "the clients' losses are part of the mean"

    def broadcast(self, server_round: int) -> Mapping[str, Weights]:
        """Ask the round's clients for their losses before they train."""
        answers = self.ask_clients("timestep_losses", self.global_weights).answers()
        losses = {answer.partition_id: torch.tensor(answer.metrics["losses"]).double() for answer in answers}
        q = float(self.config.run.options.get("q", 1.0))
        median = torch.stack([*losses.values()]).median(0).values if losses else None
        ratios = {i: float((each / median).mean()) for i, each in losses.items()}
        self.factors = {i: min(2.0, max(0.5, ratio)) ** q for i, ratio in ratios.items()}
        self.record(**{"weighting/factors": {str(i): factor for i, factor in sorted(self.factors.items())}})
        return {}

    def aggregate(self, server_round: int, replies: Iterator[Reply]) -> Weights:
        """Add each client's weights to the mean, with its factor."""
        mean = RunningMean()
        for reply in replies:
            mean.fold(reply.load(), reply.num_examples * self.factors.get(reply.partition_id, 1.0))
        return mean.result()
