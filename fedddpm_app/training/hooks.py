"""Hooks: the changes that an algorithm makes to a client's local training; plain torch.

A client's round: create the hook -> ``start_weights`` -> ``on_start`` -> for every step ``add_to_loss``, backward,
``adjust_gradients``, the optimiser's step -> ``on_end``. The hook's ``sent`` and ``metrics`` go to the server with the
trained weights; the client's next round gets the hook's ``kept``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from fedddpm_app.config import Config
from fedddpm_app.training.privacy import Privacy
from fedddpm_app.training.task import Batch
from fedddpm_app.weights import Weights


@dataclass(frozen=True)
class LocalRound:
    """One client's round, as the server describes it.

    Attributes
    ----------
    config : Config
        The run's config; ``config.run.options`` holds ``algorithm-options``.
    partition_id : int
        The client's partition id.
    server_round : int
        From 1.
    global_weights : Weights
        The global weights, or those that this client starts from in their place (``FederatedStrategy.exchanged``), on
        the CPU; do not change them.
    received : mapping of str to Weights
        Further records that the server sent, by name (``FederatedStrategy.broadcast``).
    state : mapping of str to Weights
        The records that this client kept in its last round; empty before its first round.
    """

    config: Config
    partition_id: int
    server_round: int
    global_weights: Weights
    received: Mapping[str, Weights] = field(default_factory=dict)
    state: Mapping[str, Weights] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainResult:
    """The result of a training.

    Attributes
    ----------
    weights : Weights
        The trained weights on the CPU (their EMA if ``ema_decay`` is above 0).
    loss : float
        Mean loss over all steps.
    final_loss : float
        Mean loss over the last tenth of the steps.
    steps : int
        Optimiser steps done, K.
    seconds : float
        Wall time of the loop.
    privacy : Privacy or None
        The mechanism of a private training. Losses and seconds then stay with the client: they have no noise.
    """

    weights: Weights
    loss: float
    final_loss: float
    steps: int
    seconds: float
    privacy: Privacy | None = None

    def metrics(self) -> dict[str, float]:
        """Return the metrics that a client reports."""
        if self.privacy is not None:
            return {"steps": self.steps, **self.privacy.metrics()}
        return {"loss": self.loss, "final-loss": self.final_loss, "steps": self.steps, "seconds": self.seconds}


class TrainingHook:
    """The client half of an algorithm; this one changes nothing (FedAvg).

    Torch's own random numbers are seeded in all its methods but the constructor, by the run's seed, the round and the
    client.

    Parameters
    ----------
    local_round : LocalRound
        The client's round.

    Attributes
    ----------
    keeps_state : bool
        Whether the hook has state between rounds; if False, ``kept`` is dropped, with a warning.
    kept, sent : dict of str to Weights
        Records for the client's next round, and records for the server.
    metrics : dict of str to float
        Metrics for the server, in addition to loss and steps.
    """

    keeps_state: ClassVar[bool] = False

    def __init__(self, local_round: LocalRound) -> None:
        self.round = local_round
        self.config = local_round.config
        self.kept: dict[str, Weights] = {}
        self.sent: dict[str, Weights] = {}
        self.metrics: dict[str, float] = {}

    @classmethod
    def training_images(cls, config: Config, num_examples: int, steps: int, *, is_first: bool) -> float:
        """Return the cost of a client's round of ``steps`` steps, in images that go forward and backward.

        An image that only goes forward counts 1/3. ``is_first``: the client has no state of an earlier round. This
        number is for accounting; it changes no result.
        """
        return steps * (config.training.batch_size or num_examples) * config.dp.draws("train")

    @classmethod
    def why_not_private(cls, config: Config) -> str:
        """Return why a private training cannot use this hook, as the end of a sentence; empty if it can.

        It can if all that the hook does follows from weights that clients exchange or have trained privately: this is
        post-processing. ``add_to_loss`` is not called then. Each class answers for itself: a subclass that does not
        define this method is refused.
        """
        return ""

    def start_weights(self) -> Weights:
        """Return the weights that training starts from and evaluation uses (here: the global weights)."""
        return self.round.global_weights

    def on_start(self, model: nn.Module) -> None:
        """Prepare for the training; the model is on its device and holds ``start_weights``."""

    def add_to_loss(self, loss: Tensor, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss to differentiate, a scalar; the client still reports ``loss``.

        ``batch`` are the examples as the data have them: flips and dropped classes are drawn inside the loss.
        """
        return loss

    def adjust_gradients(self, model: nn.Module) -> None:
        """Change ``parameter.grad`` in place, after the backward pass and before clipping."""

    def on_end(self, result: TrainResult, full_gradient: Callable[[Weights], Weights]) -> None:
        """Process the result of the round.

        Parameters
        ----------
        result : TrainResult
            The result; the server will get its weights.
        full_gradient : callable
            ``(weights) -> gradient`` of the loss over all the client's data, by parameter name, on the CPU.
        """

    def close(self) -> None:
        """Undo changes to the model; called after every round, including a failed round."""
