"""Client actions: requests of a strategy to its clients other than training and evaluation; plain torch.

A strategy class names its actions in ``client_actions``. ``FederatedStrategy.ask_clients`` sends a request, the client
runs ``ClientAction.run``, and the server checks the answer against the action's declaration.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedddpm_app.config import Config
from fedddpm_app.training.privacy import private_metrics
from fedddpm_app.training.privacy_ledger import PrivacyLedger
from fedddpm_app.training.task import Task
from fedddpm_app.training.trainer import Trainer
from fedddpm_app.weights import Weights

Value = bool | int | float | str | list[int] | list[float]
Metrics = Mapping[str, float | list[float] | list[int]]


@dataclass(frozen=True)
class ActionRequest:
    """The inputs of a client action.

    Attributes
    ----------
    config : Config
        The run's config.
    task : Task
        Model, loss and the client's data.
    trainer : Trainer
        Trains the task's model; its state does not outlive the action.
    partition_id : int
        The client's partition id.
    server_round : int
        From 1; 0 before the rounds.
    weights : Weights
        The weights that the server sent, on the CPU; do not change them. Empty if it sent no weights.
    values : mapping of str to scalar or list
        Further values that the server sent.
    state : mapping of str to Weights
        The records that this client kept in its last accepted round; empty before it. An action does not change them.
    ledger : PrivacyLedger or None
        Where a private training writes what it spends.
    """

    config: Config
    task: Task
    trainer: Trainer
    partition_id: int
    server_round: int
    weights: Weights = field(default_factory=dict)
    values: Mapping[str, Value] = field(default_factory=dict)
    state: Mapping[str, Weights] = field(default_factory=dict)
    ledger: PrivacyLedger | None = None


@dataclass(frozen=True)
class ActionAnswer:
    """The answer of a client action.

    Attributes
    ----------
    metrics : mapping of str to float or list
        Finite numbers, or lists of them.
    records : mapping of str to Weights
        Tensors by record name; ``arrays`` is the record of a model's weights.
    """

    metrics: Metrics = field(default_factory=dict)
    records: Mapping[str, Weights] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientAction:
    """A client action and the required content of its answer; the server refuses an incomplete answer.

    Attributes
    ----------
    run : callable
        ``(ActionRequest) -> ActionAnswer``, on the client.
    metrics : sequence of str
        Names of numbers. ``num-examples`` must be a positive whole number.
    lists : mapping of str to int
        Names of lists of numbers, with their lengths.
    records : sequence of str
        Names of tensor records. ``arrays`` must match the weights that were sent; the request gives the shapes of the
        others.
    exact : bool
        Send the weights in full precision, both ways, for any ``wire-dtype``.
    is_checked : bool
        Whether it compares its model with the client's images, and declines where it copies them, before it answers.
    is_private : bool
        Whether its answer depends on a client's data only by weights that were trained privately, if the run asks for
        that, and by the number of examples. A private run refuses an algorithm with other actions.
    sends_own : bool
        Whether the server sends a client what is that client's own, such as its model. Then only the node gets it that
        the partition belongs to, not one that claims the partition later.
    """

    run: Callable[[ActionRequest], ActionAnswer]
    metrics: Sequence[str] = ()
    lists: Mapping[str, int] = field(default_factory=dict)
    records: Sequence[str] = ()
    exact: bool = False
    is_checked: bool = False
    is_private: bool = False
    sends_own: bool = False

    @property
    def trains(self) -> bool:
        """Whether it trains a model on a client's data: it then reports its steps."""
        return "steps" in self.metrics

    def for_run(self, config: Config) -> "ClientAction":
        """Return the declaration in a run: a private pretraining has no losses, but says what privacy it spent."""
        if not (self.is_private and config.dp.pretrain.is_private and "loss" in self.metrics):
            return self
        return replace(self, metrics=private_metrics(self.metrics))
