"""What a strategy can ask its clients for besides training and evaluating; plain torch.

A strategy class names its actions in ``client_actions``; ``FederatedStrategy.ask_clients`` sends a request, the client
carries it out with ``ClientAction.run``, and the server checks the answer against the action's declaration.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fedddpm_app.config import Config
from fedddpm_app.training.task import Task
from fedddpm_app.training.trainer import Trainer
from fedddpm_app.weights import Weights

Value = bool | int | float | str | list[int] | list[float]
Metrics = Mapping[str, float | list[float] | list[int]]


@dataclass(frozen=True)
class ActionRequest:
    """What a client carries an action out with.

    Attributes
    ----------
    config : Config
        The run's config.
    task : Task
        Model, loss and the client's data.
    trainer : Trainer
        Trains the task's model; its state does not outlive the action.
    partition_id : int
        The client's.
    server_round : int
        From 1; 0 before the rounds.
    weights : Weights
        What the server sent, on the CPU; not to be changed. Empty where it sent none.
    values : mapping of str to scalar or list
        What the server sent beside them.
    """

    config: Config
    task: Task
    trainer: Trainer
    partition_id: int
    server_round: int
    weights: Weights = field(default_factory=dict)
    values: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class ActionAnswer:
    """What a client answers.

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
    """One action, and what its answer must have; an answer without it is refused.

    Attributes
    ----------
    run : callable
        ``(ActionRequest) -> ActionAnswer``, on the client.
    metrics : sequence of str
        Numbers. ``num-examples`` is checked to be a positive whole number.
    lists : mapping of str to int
        Lists of numbers, with their lengths.
    records : sequence of str
        Tensors. ``arrays`` must be like the weights that were sent; the shapes of others are given with the request.
    exact : bool
        Send the weights in full precision, whatever ``wire-dtype`` says.
    """

    run: Callable[[ActionRequest], ActionAnswer]
    metrics: Sequence[str] = ()
    lists: Mapping[str, int] = field(default_factory=dict)
    records: Sequence[str] = ()
    exact: bool = False
