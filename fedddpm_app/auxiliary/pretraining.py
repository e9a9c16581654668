"""The phase before the rounds: every client trains a local model and uploads it."""

from dataclasses import dataclass
from pathlib import Path

from flwr.serverapp import Grid
from safetensors.torch import load_file, save_file

from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.messaging import exchange
from fedddpm_app.federation.participants import is_deployed
from fedddpm_app.federation.records import ARRAYS, LABEL_COUNTS, PRETRAIN
from fedddpm_app.federation.replies import Reply, ReplySpec
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.federation.streaming import ReplyStream, with_progress
from fedddpm_app.progress import logger
from fedddpm_app.weights import Weights

_PHASE = "pretraining"
_METRICS = ("loss", "final-loss", "steps")


@dataclass(frozen=True)
class PretrainedModel:
    """A client's pretrained model, kept on disk until it is sampled.

    Attributes
    ----------
    partition_id : int
        Whose it is.
    num_examples : int
        n_i.
    label_counts : list of int
        Images per class; empty for an unconditional model.
    loss : float
        Denoising loss over the last tenth of pretraining.
    path : Path
        The safetensors file.
    """

    partition_id: int
    num_examples: int
    label_counts: list[int]
    loss: float
    path: Path

    def load(self) -> Weights:
        """Read the weights."""
        return load_file(self.path)


def collect_pretrained(strategy: FederatedStrategy, grid: Grid, weights: Weights) -> list[PretrainedModel]:
    """Have every client pretrain from ``weights``; each model goes to disk as it arrives.

    Clients that fail, answer badly, or not within ``pretrain-timeout``, are named in a warning and left out.

    Parameters
    ----------
    strategy : FederatedStrategy
        Addresses the clients, checks their replies, and keeps the account.
    grid : Grid
        Flower's connection to the nodes.
    weights : Weights
        What pretraining starts from.

    Returns
    -------
    list of PretrainedModel
        At least one, by partition id.

    Raises
    ------
    RoundFailedError
        When no client gave a usable model.
    """
    with strategy.round_log.own_phase() as span:
        with strategy.accounting.timed("pretrain"):
            models, left_out = _collect(strategy, grid, weights)
        if not models:
            raise RoundFailedError("pretraining failed on every client, so there is no auxiliary set to build.")
        strategy.recorder.append(
            {
                "phase": "pretrain",
                "pretrain/clients": [m.partition_id for m in models],
                "pretrain/client_loss": {str(m.partition_id): m.loss for m in models},
                **left_out,
                **span.spent("time/phase_s"),
            }
        )
    return models


def _collect(
    strategy: FederatedStrategy, grid: Grid, weights: Weights
) -> tuple[list[PretrainedModel], dict[str, object]]:
    """Return the models, by partition id, and the account of who was left out."""
    clients, transport, timeout = strategy.clients, strategy.transport, strategy.config.pretrain.timeout
    partitions, packed = clients.present(strategy.config.schedule.min_replies), transport.pack(weights)
    messages = clients.address(partitions, PRETRAIN, {ARRAYS: packed}, 0, timeout)
    replies = exchange(grid, messages, timeout, clients.participants.under_way)
    asked = ReplySpec({ARRAYS: transport.expect(weights)}, _METRICS)
    models: dict[int, PretrainedModel] = {}
    stream = ReplyStream(clients, replies, partitions, _PHASE, asked)
    as_they_come = stream.as_they_come()
    for reply in with_progress(as_they_come, "pretrain") if is_deployed(grid.run) else as_they_come:
        model = _keep(strategy, reply)
        if model is not None:
            models[reply.partition_id] = model
    transport.release(packed)
    if models and len(models) < strategy.config.schedule.min_replies:
        raise stream.too_few(len(models), strategy.config.schedule.min_replies)
    return [models[partition] for partition in sorted(models)], stream.left_out("pretrain")


def _keep(strategy: FederatedStrategy, reply: Reply) -> PretrainedModel | None:
    """Write a reply's model to disk; None, with a warning, where its label counts cannot be used."""
    counts: object = reply.metrics.get(LABEL_COUNTS, [])
    data = strategy.config.data
    if data.class_conditional and not _are_label_counts(counts, data.num_classes, reply.num_examples):
        logger.warning("%s: client %d is left out: label counts %s", _PHASE, reply.partition_id, counts)
        return None
    path = strategy.recorder.scratch / f"pretrained-{reply.partition_id:04d}.safetensors"
    save_file(reply.load(), path)
    label_counts = counts if data.class_conditional and isinstance(counts, list) else []
    return PretrainedModel(reply.partition_id, reply.num_examples, label_counts, reply.number("final-loss"), path)


def _are_label_counts(counts: object, num_classes: int, num_examples: int) -> bool:
    return (
        isinstance(counts, list)
        and len(counts) == num_classes
        and all(isinstance(count, int) and count >= 0 for count in counts)
        and sum(counts) == num_examples
    )
