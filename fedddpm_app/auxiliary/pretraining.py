"""The training of a client's own model, which the client uploads: the client half, and the check of the upload."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedddpm_app import progress
from fedddpm_app.auxiliary.gate import check_enough, check_share, open_gate
from fedddpm_app.auxiliary.sampler import AuxiliarySampler
from fedddpm_app.auxiliary.share import batches_of
from fedddpm_app.auxiliary.uploads import COUNT, GENERATED, MEMORIZED_SHARE, REPLACED
from fedddpm_app.config import Config, ConfigError
from fedddpm_app.diffusion.images import DivergedError
from fedddpm_app.diffusion.sampling import SampleBatch
from fedddpm_app.federation.cost import Cost, images_of_generation, of_images
from fedddpm_app.federation.messages.label_counts import LABEL_COUNTS
from fedddpm_app.federation.messages.records import ARRAYS, NUM_EXAMPLES
from fedddpm_app.federation.messages.replies import Reply, ReplyRefusedError
from fedddpm_app.seeding import derive_seed
from fedddpm_app.training.actions import ActionAnswer, ActionRequest, ClientAction, Metrics, Value
from fedddpm_app.training.declined import DeclinedError
from fedddpm_app.training.hooks import TrainResult
from fedddpm_app.training.privacy_ledger import begin
from fedddpm_app.weights import Weights

METRICS = (NUM_EXAMPLES, "loss", "final-loss", "steps")
TRIES = 3  # to replace near copies
LEAST_CHECKED = 32  # images: a share of fewer says little


@dataclass(frozen=True)
class OwnTraining:
    """A training of own models by all clients.

    Attributes
    ----------
    name : str
        The name of the phase in ``stats.jsonl`` and in progress lines.
    steps : int
        Optimiser steps of a client.
    values : mapping
        Sent to the clients with the weights.
    action : str
        The name of the client action; if it is empty, ``name``.
    """

    name: str
    steps: int
    values: Mapping[str, Value] = field(default_factory=dict)
    action: str = ""

    def images(self, config: Config, num_examples: int) -> float:
        """Return the compute of a client, in training images."""
        return self.steps * (config.training.batch_size or num_examples) * config.dp.draws("pretrain")

    def cost(self, config: Config, sizes: Sequence[int]) -> Cost:
        """Return the cost of the training by all clients, and of their check; ``sizes`` are their numbers of images."""
        models, images = config.data.num_clients, sum(self.images(config, size) for size in sizes)
        if config.checks_memorization:
            images += images_of_generation(config.auxiliary.size, config.auxiliary.sampler_steps)
        return of_images(config, images) + Cost(0.0, models, models)


def pretrain(request: ActionRequest) -> ActionAnswer:
    """Train a local model from the received weights; return its EMA weights, unless the run's clients share images."""
    if request.config.auxiliary.sharing == "images":
        raise ConfigError('auxiliary-sharing = "images": this run\'s clients hand over no model of their own.')
    return with_label_counts(request, train_own_model(request, request.config.pretrain.steps, "pretrain"))


def train_own_model(request: ActionRequest, steps: int, purpose: str, server_round: int | None = None) -> ActionAnswer:
    """Train a local model, and return it if it may leave the client; see ``train_own``.

    Raises
    ------
    DeclinedError
        If the clients of the run check their models, and this one may not leave.
    """
    result, num_examples = train_own(request, steps, purpose, server_round)
    checked = _check(request, result.weights, num_examples) if request.config.checks_memorization else {}
    if result.privacy is not None:  # a site's own policy checks, but its result has no noise
        checked = {key: value for key, value in checked.items() if key == GENERATED}
    return ActionAnswer({**result.metrics(), NUM_EXAMPLES: num_examples, **checked}, {ARRAYS: result.weights})


def train_own(
    request: ActionRequest, steps: int, purpose: str, server_round: int | None = None
) -> tuple[TrainResult, int]:
    """Train a local model with the settings of pretraining; return the result and the number of images.

    ``purpose``, the round (if it is given) and the client determine the seed, and are named in progress lines.
    """
    config, partition_id = request.config, request.partition_id
    data = request.task.train_data(partition_id)
    check_enough(config, len(data))
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
    return result, len(data)


def _check(request: ActionRequest, weights: Weights, num_examples: int) -> Metrics:
    """Generate as many images as the client's part of D_aux has, and return the share of near copies among them."""
    config, partition_id = request.config, request.partition_id
    count = max(images_asked(request), LEAST_CHECKED)
    _, batches = batches_of(config, partition_id, count, request.task.label_counts(partition_id))
    images = drawn(AuxiliarySampler(config, request.trainer.model), weights, batches)
    copies = open_gate(config, request.task, partition_id).copies(images)
    return {MEMORIZED_SHARE: check_share(config, copies, num_examples), GENERATED: len(images)}


def images_asked(request: ActionRequest) -> int:
    """Return the number of images of the client's part of D_aux, which the server names.

    Raises
    ------
    ConfigError
        If it is more than D_aux has.
    """
    count, most = int(str(request.values[COUNT])), request.config.auxiliary.size
    if not 0 <= count <= most:
        raise ConfigError(f"the server asks for {count} images of one client, but auxiliary-size = {most}.")
    return count


def drawn(sampler: AuxiliarySampler, weights: Weights, batches: Sequence[SampleBatch]) -> Tensor:
    """Return the images of batches, uint8 (N, C, H, W); decline where a client's own model cannot generate any.

    Another attempt would give the same model.
    """
    try:
        return torch.cat([*sampler.sample(weights, batches)])
    except DivergedError as error:
        raise DeclinedError(f"it shares nothing: {error}") from error


def with_label_counts(request: ActionRequest, answer: ActionAnswer) -> ActionAnswer:
    """Add the label counts if the model is class-conditional: a client reveals no more than is needed."""
    label_counts = request.task.label_counts(request.partition_id)
    metrics = {**answer.metrics} | ({LABEL_COUNTS: label_counts} if label_counts else {})
    return ActionAnswer(metrics, answer.records)


def check_claims(config: Config, reply: Reply) -> None:
    """Refuse a share of near copies, or numbers of images, that no check can have found."""
    most = (1 + TRIES) * max(config.auxiliary.size, LEAST_CHECKED) + LEAST_CHECKED
    for key, largest in ((MEMORIZED_SHARE, 1.0), (GENERATED, most), (REPLACED, most)):
        value = reply.number(key)
        if not (math.isnan(value) or 0 <= value <= largest):
            raise ReplyRefusedError(f"{key} is {value:g}, which is not between 0 and {largest:g}")


PRETRAIN = ClientAction(pretrain, metrics=METRICS, records=(ARRAYS,), is_checked=True, is_private=True)
