"""The phase before the rounds: every client trains a local model and uploads it."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from fedddpm_app import progress
from fedddpm_app import weights as weights_module
from fedddpm_app.federation.actions import NO_RECORDS, NO_VALUES
from fedddpm_app.federation.admission import warn_of_decisive
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.participants import is_deployed
from fedddpm_app.federation.records import ARRAYS, NUM_EXAMPLES
from fedddpm_app.federation.replies import Reply, ReplyRefusedError
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.federation.streaming import with_progress
from fedddpm_app.seeding import derive_seed
from fedddpm_app.training.actions import ActionAnswer, ActionRequest, ClientAction
from fedddpm_app.weights import Weights

_LABEL_COUNTS = "label-counts"


@dataclass(frozen=True)
class PretrainedModel:
    """A client's pretrained model, kept on disk until it is sampled.

    Attributes
    ----------
    partition_id : int
        The client's partition.
    num_examples : int
        n_i.
    label_counts : list of int
        Images per class; empty for an unconditional model.
    loss : float
        Denoising loss over the last tenth of pretraining.
    path : Path
        The safetensors file.
    update_norm : float
        The L2 norm of the change from the initial weights.
    """

    partition_id: int
    num_examples: int
    label_counts: list[int]
    loss: float
    path: Path
    update_norm: float = 0.0

    def load(self) -> Weights:
        """Read the weights."""
        return load_file(self.path)


# ---- the client half -------------------------------------------------------------------------


def pretrain(request: ActionRequest) -> ActionAnswer:
    """Train a local model from the received weights; return its EMA weights.

    The label counts are added only for a class-conditional model: a client reveals no more than is needed.
    """
    config, partition_id = request.config, request.partition_id
    data = request.task.train_data(partition_id)
    result = request.trainer.train(
        request.weights,
        data,
        steps=config.pretrain.steps,
        seed=derive_seed(config.run.seed, "pretrain", partition_id),
        learning_rate=config.pretrain.learning_rate,
        learning_rate_schedule=config.pretrain.learning_rate_schedule,
        ema_decay=config.training.ema_decay,
        on_report=progress.reporter("pretrain", partition_id),
    )
    label_counts = request.task.label_counts(partition_id)
    metrics = {**result.metrics(), NUM_EXAMPLES: len(data)} | ({_LABEL_COUNTS: label_counts} if label_counts else {})
    return ActionAnswer(metrics, {ARRAYS: result.weights})


PRETRAIN = ClientAction(pretrain, metrics=(NUM_EXAMPLES, "loss", "final-loss", "steps"), records=(ARRAYS,))


# ---- the server half -------------------------------------------------------------------------


def collect_pretrained(strategy: FederatedStrategy, weights: Weights) -> list[PretrainedModel]:
    """Have every client pretrain from ``weights``; each model goes to disk as it arrives.

    A client that fails, returns an unusable reply, or does not reply within ``pretrain-timeout`` is named in a warning
    and left out.

    Parameters
    ----------
    strategy : FederatedStrategy
        Its ``client_actions`` include ``pretrain``.
    weights : Weights
        The weights that pretraining starts from.

    Returns
    -------
    list of PretrainedModel
        At least one, by partition id.

    Raises
    ------
    RoundFailedError
        If no client returned a usable model.
    """
    with strategy.round_log.own_phase() as span:
        with strategy.accounting.timed("pretrain"):
            models, left_out = _collect(strategy, weights)
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


def _collect(strategy: FederatedStrategy, weights: Weights) -> tuple[list[PretrainedModel], dict[str, object]]:
    """Return the models, by partition id, and the clients left out with the reasons."""
    min_replies, admission = strategy.config.waiting.min_replies, strategy.clients.admission
    call = strategy.action_call("pretrain", strategy.config.pretrain.timeout)
    partitions, check = strategy.clients.present(min_replies), functools.partial(_check, strategy)
    stream = call.ask(partitions, weights, NO_VALUES, NO_RECORDS, check)
    models: dict[int, PretrainedModel] = {}
    answers = stream.as_they_come()
    for reply in with_progress(answers, "pretrain") if is_deployed(strategy.grid.run) else answers:
        models[reply.partition_id] = _keep(strategy, reply)
        del reply
    norms = {partition: model.update_norm for partition, model in models.items()}
    for partition, reason in admission.too_large(norms, lambda: weights_module.norm(weights)).items():
        models.pop(partition).path.unlink()
        stream.refuse(partition, reason)
    admission.sizes = {**{p: model.num_examples for p, model in models.items()}, **admission.sizes}
    warn_of_decisive({p: model.num_examples for p, model in models.items()})
    if models and len(models) < min_replies:
        raise stream.too_few(len(models), min_replies)
    return [models[partition] for partition in sorted(models)], stream.left_out("pretrain")


def _keep(strategy: FederatedStrategy, reply: Reply) -> PretrainedModel:
    """Write a reply's model to disk."""
    path = strategy.recorder.scratch / f"pretrained-{reply.partition_id:04d}.safetensors"
    save_file(reply.load(), path)
    counts: Any = reply.metrics[_LABEL_COUNTS] if strategy.config.data.class_conditional else []
    norm = reply.update_norm or 0.0
    return PretrainedModel(reply.partition_id, reply.num_examples, counts, reply.number("final-loss"), path, norm)


def _check(strategy: FederatedStrategy, reply: Reply) -> None:
    """Refuse label counts that are not one number per class, with the client's examples as their sum."""
    counts: object = reply.metrics.get(_LABEL_COUNTS, [])
    data = strategy.config.data
    fits = (
        isinstance(counts, list)
        and len(counts) == data.num_classes
        and all(isinstance(count, int) and count >= 0 for count in counts)
        and sum(counts) == reply.num_examples
    )
    if data.class_conditional and not fits:
        raise ReplyRefusedError(
            f"its label counts are not {data.num_classes} numbers that add up to its {reply.num_examples} images"
        )
