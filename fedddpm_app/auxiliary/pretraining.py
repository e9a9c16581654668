"""The training of a client's own model, which the client uploads: the client half, and the check of the upload."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedddpm_app import progress
from fedddpm_app.auxiliary.models import LABEL_COUNTS
from fedddpm_app.config import Config
from fedddpm_app.federation.cost import Cost, of_images
from fedddpm_app.federation.records import ARRAYS, NUM_EXAMPLES
from fedddpm_app.federation.replies import Reply, ReplyRefusedError
from fedddpm_app.seeding import derive_seed
from fedddpm_app.training.actions import ActionAnswer, ActionRequest, ClientAction, Value
from fedddpm_app.training.privacy import begin


@dataclass(frozen=True)
class OwnTraining:
    """A training of own models by all clients.

    Attributes
    ----------
    name : str
        The client action, and the name of the phase in ``stats.jsonl`` and in progress lines.
    steps : int
        Optimiser steps of a client.
    values : mapping
        Sent to the clients with the weights.
    """

    name: str
    steps: int
    values: Mapping[str, Value] = field(default_factory=dict)

    def images(self, config: Config, num_examples: int) -> float:
        """Return the compute of a client, in training images."""
        return self.steps * (config.training.batch_size or num_examples)

    def cost(self, config: Config, sizes: Sequence[int]) -> Cost:
        """Return the cost of the training by all clients; ``sizes`` are their numbers of training images."""
        models = config.data.num_clients
        return of_images(config, sum(self.images(config, size) for size in sizes)) + Cost(0.0, models, models)


def pretrain(request: ActionRequest) -> ActionAnswer:
    """Train a local model from the received weights; return its EMA weights."""
    return with_label_counts(request, train_own_model(request, request.config.pretrain.steps, "pretrain"))


def train_own_model(request: ActionRequest, steps: int, purpose: str, server_round: int | None = None) -> ActionAnswer:
    """Train a local model with the settings of pretraining.

    ``purpose``, the round (if it is given) and the client determine the seed, and are named in progress lines.
    """
    config, partition_id = request.config, request.partition_id
    data = request.task.train_data(partition_id)
    indices = () if server_round is None else (server_round,)
    privacy = begin(config, "pretrain", request.ledger, num_examples=len(data), steps=steps, planned=steps)
    result = request.trainer.train(
        request.weights,
        data,
        steps=steps,
        seed=derive_seed(config.run.seed, purpose, *indices, partition_id),
        learning_rate=config.pretrain.learning_rate,
        learning_rate_schedule=config.pretrain.learning_rate_schedule,
        ema_decay=config.training.ema_decay,
        privacy=privacy,
        on_report=progress.reporter(purpose, partition_id, server_round, config.run.num_rounds),
    )
    return ActionAnswer({**result.metrics(), NUM_EXAMPLES: len(data)}, {ARRAYS: result.weights})


def with_label_counts(request: ActionRequest, answer: ActionAnswer) -> ActionAnswer:
    """Add the label counts if the model is class-conditional: a client reveals no more than is needed."""
    label_counts = request.task.label_counts(request.partition_id)
    metrics = {**answer.metrics} | ({LABEL_COUNTS: label_counts} if label_counts else {})
    return ActionAnswer(metrics, answer.records)


def check_label_counts(config: Config, reply: Reply) -> None:
    """Refuse label counts that are not one number per class, with the client's examples as their sum."""
    counts: object = reply.metrics.get(LABEL_COUNTS, [])
    fits = (
        isinstance(counts, list)
        and len(counts) == config.data.num_classes
        and all(isinstance(count, int) and count >= 0 for count in counts)
        and sum(counts) == reply.num_examples
    )
    if config.data.class_conditional and not fits:
        raise ReplyRefusedError(
            f"its label counts are not {config.data.num_classes} numbers that add up to its {reply.num_examples} images"
        )


PRETRAIN = ClientAction(
    pretrain, metrics=(NUM_EXAMPLES, "loss", "final-loss", "steps"), records=(ARRAYS,), is_private=True
)
