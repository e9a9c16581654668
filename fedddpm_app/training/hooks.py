"""What an algorithm can change in a client's local training; plain torch.

A client's round: the hook is made for it -> ``start_weights`` -> ``on_start`` -> for every step ``add_to_loss``,
backward, ``adjust_gradients``, the optimiser's step -> ``on_end``. What the hook puts in ``sent`` and ``metrics``
goes to the server with the trained weights; what it puts in ``kept`` is there in this client's next round.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from fedddpm_app.config import Config
from fedddpm_app.training.task import Batch
from fedddpm_app.weights import Weights


@dataclass(frozen=True)
class LocalRound:
    """One client's round, as it was told of it.

    Attributes
    ----------
    config : Config
        The run's config; ``config.run.options`` holds ``algorithm-options``.
    partition_id : int
        The client's.
    server_round : int
        From 1.
    global_weights : Weights
        What the server sent, on the CPU; not to be changed.
    received : mapping of str to Weights
        What the server sent along, by name (``FederatedStrategy.broadcast``).
    state : mapping of str to Weights
        What this client kept of its last round; empty before its first.
    """

    config: Config
    partition_id: int
    server_round: int
    global_weights: Weights
    received: Mapping[str, Weights] = field(default_factory=dict)
    state: Mapping[str, Weights] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainResult:
    """What a training gave.

    Attributes
    ----------
    weights : Weights
        The trained weights on the CPU (their EMA if one was asked for).
    loss : float
        Mean loss over all steps.
    final_loss : float
        Mean loss over the last tenth of the steps.
    steps : int
        Optimiser steps done, K.
    seconds : float
        Wall time of the loop.
    learning_rate_sum : float
        The learning rates of all steps together: ``K eta`` where it is constant.
    """

    weights: Weights
    loss: float
    final_loss: float
    steps: int
    seconds: float
    learning_rate_sum: float = 0.0

    def metrics(self) -> dict[str, float]:
        """Return what a client reports of a training."""
        return {"loss": self.loss, "final-loss": self.final_loss, "steps": self.steps, "seconds": self.seconds}


class TrainingHook:
    """The client half of an algorithm; this one changes nothing (FedAvg).

    Parameters
    ----------
    local_round : LocalRound
        The round that it is made for.

    Attributes
    ----------
    keeps_state : bool
        Whether it keeps anything over rounds; without it ``kept`` is dropped.
    kept, sent : dict of str to Weights
        For the client's next round, and for the server.
    metrics : dict of str to float
        For the server, beside loss and steps.
    """

    keeps_state: ClassVar[bool] = False

    def __init__(self, local_round: LocalRound) -> None:
        self.round = local_round
        self.config = local_round.config
        self.kept: dict[str, Weights] = {}
        self.sent: dict[str, Weights] = {}
        self.metrics: dict[str, float] = {}

    def start_weights(self) -> Weights:
        """Return the weights that training starts from and evaluation uses (here: the global ones)."""
        return self.round.global_weights

    def on_start(self, model: nn.Module) -> None:
        """Prepare, with the model on its device and at ``start_weights``."""

    def add_to_loss(self, loss: Tensor, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss to differentiate, a scalar; what is reported stays the loss without it."""
        return loss

    def adjust_gradients(self, model: nn.Module) -> None:
        """Change ``parameter.grad`` in place, after the backward pass and before clipping."""

    def on_end(self, result: TrainResult, full_gradient: Callable[[Weights], Weights]) -> None:
        """Take the round's outcome.

        Parameters
        ----------
        result : TrainResult
            Its weights are what the server will get.
        full_gradient : callable
            ``(weights) -> gradient`` of the loss over all the client's data, by parameter name, on the CPU.
        """

    def close(self) -> None:
        """Undo what was done to the model; called after the round, also after one that failed."""
