"""The phase before the rounds: every client trains a local model and uploads it."""

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fedddpm_app import progress
from fedddpm_app import weights as weights_module
from fedddpm_app.disk.durable import digest_of, publish, unfinished
from fedddpm_app.federation.accounting import Span
from fedddpm_app.federation.actions import NO_RECORDS, NO_VALUES
from fedddpm_app.federation.admission import warn_of_decisive
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.participants import is_deployed
from fedddpm_app.federation.phases import finish_phase, finished_phase, forget_phase, replay_phase
from fedddpm_app.federation.ports import Recorder
from fedddpm_app.federation.records import ARRAYS, NUM_EXAMPLES
from fedddpm_app.federation.replies import Reply, ReplyRefusedError
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.federation.streaming import ReplyStream, with_progress
from fedddpm_app.progress import logger
from fedddpm_app.seeding import derive_seed
from fedddpm_app.training.actions import ActionAnswer, ActionRequest, ClientAction
from fedddpm_app.weights import Weights

HELD_OUT_LOSS = "held-out-loss"
_LABEL_COUNTS = "label-counts"
_MODEL, _ABOUT = "pretrained-", "about"


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
    num_bytes : int
        Bytes of its weights as received.
    seconds : float
        The time from the start of the phase to its arrival.
    update_norm : float
        The L2 norm of the change from the initial weights.
    held_out_loss : float or None
        Denoising loss of the model on the client's held-out images, if the client reported it.
    """

    partition_id: int
    num_examples: int
    label_counts: list[int]
    loss: float
    path: Path
    num_bytes: int = 0
    seconds: float = 0.0
    update_norm: float = 0.0
    held_out_loss: float | None = None

    def load(self) -> Weights:
        """Read the weights."""
        return load_file(self.path)


# ---- the client half -------------------------------------------------------------------------


def pretrain(request: ActionRequest) -> ActionAnswer:
    """Train a local model from the received weights; return its EMA weights."""
    return with_label_counts(request, train_own_model(request, request.config.pretrain.steps, "pretrain"))


def with_label_counts(request: ActionRequest, answer: ActionAnswer) -> ActionAnswer:
    """Add the label counts if the model is class-conditional: a client reveals no more than is needed."""
    label_counts = request.task.label_counts(request.partition_id)
    metrics = {**answer.metrics} | ({_LABEL_COUNTS: label_counts} if label_counts else {})
    return ActionAnswer(metrics, answer.records)


def train_own_model(request: ActionRequest, steps: int, purpose: str, *indices: int) -> ActionAnswer:
    """Train a local model with the settings of pretraining; ``purpose``, indices and client determine the seed."""
    config, partition_id = request.config, request.partition_id
    data = request.task.train_data(partition_id)
    result = request.trainer.train(
        request.weights,
        data,
        steps=steps,
        seed=derive_seed(config.run.seed, purpose, *indices, partition_id),
        learning_rate=config.pretrain.learning_rate,
        learning_rate_schedule=config.pretrain.learning_rate_schedule,
        ema_decay=config.training.ema_decay,
        on_report=progress.reporter(purpose, partition_id),
    )
    return ActionAnswer({**result.metrics(), NUM_EXAMPLES: len(data)}, {ARRAYS: result.weights})


PRETRAIN = ClientAction(pretrain, metrics=(NUM_EXAMPLES, "loss", "final-loss", "steps"), records=(ARRAYS,))


# ---- the server half -------------------------------------------------------------------------


def collect_pretrained(strategy: FederatedStrategy, weights: Weights | None) -> list[PretrainedModel]:
    """Have every client pretrain from ``weights``; each model goes to disk as it arrives.

    A client that fails, returns an unusable reply, or does not reply within ``pretrain-timeout`` is named in a warning
    and left out. A resumed run reads the models that arrived before, and asks only the other clients.

    Parameters
    ----------
    strategy : FederatedStrategy
        Its ``client_actions`` include ``pretrain``.
    weights : Weights or None
        The weights that pretraining starts from; None if they are not known any more.

    Returns
    -------
    list of PretrainedModel
        At least one, by partition id.

    Raises
    ------
    TooFewRepliesError
        If fewer than ``min-replies`` clients returned a usable model, also after ``max-round-retries`` repetitions.
    RoundFailedError
        When models are missing, and the weights that they start from are not known.
    """
    recorder = strategy.recorder
    models = {model.partition_id: model for model in map(_read, _files(recorder.unfinished)) if model is not None}
    row = finished_phase(recorder, "pretrain")
    with strategy.round_log.own_phase() as span:
        if row is not None and set(row["pretrain/clients"]) <= models.keys():
            replay_phase(recorder, strategy.accounting, "pretrain")
            return _known(strategy, [models[partition] for partition in row["pretrain/clients"]])
        if weights is None:
            raise RoundFailedError(
                "the pretrained models are missing or damaged, and the weights that they were trained from are those "
                "of an earlier round: restore the folder unfinished of the run from a backup, or start a new run."
            )
        if models:
            logger.info("pretraining: the models of the clients %s are kept from before", sorted(models))
            strategy.accounting.bytes_up += sum(model.num_bytes for model in models.values())
            strategy.accounting.bytes_down += sum(model.num_bytes for model in models.values())
            strategy.accounting.images += sum(_images(strategy, model) for model in models.values())
            strategy.accounting.seconds["pretrain"] += max(model.seconds for model in models.values())
        with strategy.accounting.timed("pretrain"):
            left_out = _collect(strategy, weights, models, span)
        ordered = [models[partition] for partition in sorted(models)]
        finish_phase(
            recorder,
            {
                "phase": "pretrain",
                "round": strategy.round_log.server_round,
                "pretrain/clients": [m.partition_id for m in ordered],
                "pretrain/client_loss": {str(m.partition_id): m.loss for m in ordered},
                **left_out,
                **span.spent("time/phase_s"),
            },
        )
    return _known(strategy, ordered)


def discard_pretrained(recorder: Recorder) -> None:
    """Remove the models, and forget that pretraining is finished: it is due again in a later round."""
    forget_phase(recorder, "pretrain")
    for path in _files(recorder.unfinished):
        path.unlink(missing_ok=True)


def _known(strategy: FederatedStrategy, models: list[PretrainedModel]) -> list[PretrainedModel]:
    """Return the models, whose numbers of images are the most that their clients may claim later."""
    sizes = {model.partition_id: model.num_examples for model in models}
    strategy.clients.admission.sizes = sizes | strategy.clients.admission.sizes
    warn_of_decisive(sizes)
    return models


def _collect(
    strategy: FederatedStrategy, weights: Weights, models: dict[int, PretrainedModel], span: Span
) -> dict[str, object]:
    """Add the models of the clients that have none; return the clients left out with the reasons."""
    waiting = strategy.config.waiting
    quorum = waiting.quorum(strategy.config.data.num_clients)
    call = strategy.action_call("pretrain", strategy.config.pretrain.timeout)
    for attempt in range(waiting.max_round_retries + 1):
        present = strategy.clients.present(quorum)
        missing = [partition for partition in present if partition not in models]
        stream = call.ask(missing, weights, NO_VALUES, NO_RECORDS, functools.partial(_check, strategy))
        answers = stream.as_they_come()
        for reply in with_progress(answers, "pretrain") if is_deployed(strategy.grid.run) else answers:
            model = models[reply.partition_id] = _keep(strategy, reply, span.spent("s")["s"])
            strategy.accounting.images += _images(strategy, model)
            del reply
        _judge(strategy, weights, models, stream)
        if len(models) >= quorum:
            break
        error = stream.too_few(sum(partition in models for partition in missing), quorum)
        if attempt == waiting.max_round_retries:
            raise error
        row = {"phase": "abandoned", "round": 0, "attempt": attempt, "reason": str(error)}
        strategy.recorder.append(row | stream.left_out("pretrain"))
        text = "pretraining is repeated on the clients without a model (%d of max-round-retries = %d): %s"
        logger.warning(text, attempt + 1, waiting.max_round_retries, error)
    return stream.left_out("pretrain")


def _judge(
    strategy: FederatedStrategy, weights: Weights, models: dict[int, PretrainedModel], stream: ReplyStream
) -> None:
    """Drop the models that changed too much: all have arrived, so all norms are known."""
    norms = {partition: model.update_norm for partition, model in models.items()}
    too_large = strategy.clients.admission.too_large(norms, lambda: weights_module.norm(weights))
    for partition, reason in too_large.items():
        models.pop(partition).path.unlink()
        stream.refuse(partition, reason)


def _keep(strategy: FederatedStrategy, reply: Reply, seconds: float) -> PretrainedModel:
    """Write a reply's model to disk; the file is complete or absent, and its name ends in its SHA-256."""
    counts: Any = reply.metrics[_LABEL_COUNTS] if strategy.config.data.class_conditional else []
    about: dict[str, Any] = {
        "partition_id": reply.partition_id,
        "num_examples": reply.num_examples,
        "label_counts": [*counts],
        "loss": reply.number("final-loss"),
        "update_norm": reply.update_norm or 0.0,
        "held_out_loss": _finite(reply.metrics.get(HELD_OUT_LOSS)),
        "num_bytes": reply.num_bytes,
        "seconds": seconds,
    }
    name = f"{_MODEL}{reply.partition_id:04d}"
    with unfinished(strategy.recorder.unfinished / name) as work:
        save_file(reply.load(), work, {_ABOUT: json.dumps(about)})
        path = work.with_name(f"{name}-{digest_of(work)}.safetensors")
        publish(work, path)
    return PretrainedModel(path=path, **about)


def _finite(value: object) -> float | None:
    """Return a reported number; None if it is not there, or is not a finite number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _images(strategy: FederatedStrategy, model: PretrainedModel) -> float:
    """Return the compute of a client's pretraining, in training images."""
    return strategy.config.pretrain.steps * (strategy.config.training.batch_size or model.num_examples)


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_MODEL}*.safetensors"))


def _read(path: Path) -> PretrainedModel | None:
    """Return a model that an earlier process of this run wrote; None, with a warning, if its file is damaged."""
    try:
        if digest_of(path) != path.stem.rpartition("-")[2]:
            raise ValueError("its SHA-256 differs")
        with safe_open(path, framework="pt") as file:
            return PretrainedModel(path=path, **json.loads((file.metadata() or {})[_ABOUT]))
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        logger.warning("the pretrained model %s is damaged (%s): its client pretrains again", path, error)
        return None


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
