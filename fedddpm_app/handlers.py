"""The ClientApp's handlers, for any task: a message in, the worker's answer out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedddpm_app import weights as weights_module
from fedddpm_app.config import Config, ConfigError
from fedddpm_app.diffusion.sampling import SampleBatch, split_batches
from fedddpm_app.federation.base import FederatedDiffusion
from fedddpm_app.federation.client_state import ClientState
from fedddpm_app.federation.records import (
    ARRAYS,
    BATCH_SIZE,
    CONFIG,
    DRAW,
    IMAGES,
    LABEL_COUNTS,
    LABELS,
    METRICS,
    NUM_EXAMPLES,
    NUM_PARTITIONS,
    PARTITION_ID,
    SEEDS,
    SERVER_ROUND,
    STATE_ROUND,
    to_arrays,
    to_weights,
)
from fedddpm_app.hooks import LocalRound, TrainingHook, TrainResult
from fedddpm_app.weights import Weights
from fedddpm_app.worker import Worker


@dataclass(frozen=True)
class ClientSetup:
    """What a client needs to answer: the run's config, its algorithm, and the worker of this process."""

    config: Config
    strategy: type[FederatedDiffusion]
    get_worker: Callable[[], Worker]

    @property
    def worker(self) -> Worker:
        """The worker, made on first use."""
        return self.get_worker()


def create_client_app(set_up: Callable[[Context], ClientSetup]) -> ClientApp:
    """Create the ClientApp.

    Parameters
    ----------
    set_up : callable
        Called with the context of every message that trains or evaluates.
    """
    app = ClientApp()

    @app.query()
    def identify(message: Message, context: Context) -> Message:
        """Tell the partition id that this node holds."""
        return _reply(message, MetricRecord({PARTITION_ID: _partition(context)}))

    @app.query("forget")
    def forget(message: Message, context: Context) -> Message:
        """Remove what this client kept for the run."""
        ClientState(set_up(context).config, context, _partition(context)).forget()
        return _reply(message, MetricRecord())

    @app.query("draw")
    def draw(message: Message, context: Context) -> Message:
        """Draw images of the auxiliary set from this client's pretrained model, which comes back with the request."""
        images = set_up(context).worker.draw(_weights(message), _asked_batches(message))
        return _reply(message, MetricRecord(), {IMAGES: ArrayRecord({IMAGES: Array(images.numpy())})})

    @app.train("pretrain")
    def pretrain(message: Message, context: Context) -> Message:
        """Train a local model for FedDDPM's auxiliary set."""
        result = _checked(set_up(context), context).worker.pretrain(_weights(message), _partition(context))
        metrics = _metrics(result.training, result.num_examples)
        if result.label_counts:
            metrics[LABEL_COUNTS] = result.label_counts
        return _reply(message, metrics, {ARRAYS: to_arrays(result.training.weights)})

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Train one round from the global weights."""
        setup = _checked(set_up(context), context)
        hook = _create_hook(setup, message, context)
        result = setup.worker.train(hook)
        _check_finite(result.training, hook)
        if hook.keeps_state:
            _open_state(setup, message, context).save(hook.round.server_round, hook.kept)
        metrics = _metrics(result.training, result.num_examples)
        metrics.update(hook.metrics)
        sent = {name: to_arrays(weights) for name, weights in hook.sent.items()}
        return _reply(message, metrics, {ARRAYS: to_arrays(result.training.weights), **sent})

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        """Evaluate on this client's held-out examples."""
        setup = _checked(set_up(context), context)
        loss, num_examples = setup.worker.evaluate(_create_hook(setup, message, context))
        return _reply(message, MetricRecord({"loss": loss, NUM_EXAMPLES: num_examples}))

    return app


def _create_hook(setup: ClientSetup, message: Message, context: Context) -> TrainingHook:
    """Make the algorithm's hook for the round that a message is about."""
    partition_id = _partition(context)
    received = {name: to_weights(arrays) for name, arrays in message.content.array_records.items() if name != ARRAYS}
    hook = setup.strategy.hook
    state = _open_state(setup, message, context) if hook.keeps_state else {}
    server_round = _told(message, SERVER_ROUND)
    return hook(LocalRound(setup.config, partition_id, server_round, _weights(message), received, state))


def _open_state(setup: ClientSetup, message: Message, context: Context) -> ClientState:
    return ClientState(setup.config, context, _partition(context), _told(message, STATE_ROUND))


def _told(message: Message, key: str) -> int:
    config: ConfigRecord = message.content.config_records[CONFIG]
    return int(config[key])  # type: ignore[arg-type]


def _check_finite(training: TrainResult, hook: TrainingHook) -> None:
    """Raise for a training that diverged, before anything of it is kept."""
    for weights in (training.weights, *hook.kept.values(), *hook.sent.values()):
        if not weights_module.is_finite(weights):
            raise RuntimeError(f"its training diverged, with a last loss of {training.final_loss}: lower learning-rate")


def _checked(setup: ClientSetup, context: Context) -> ClientSetup:
    nodes = context.node_config.get(NUM_PARTITIONS, setup.config.data.num_clients)
    if nodes != setup.config.data.num_clients:
        raise ConfigError(
            f"num-clients = {setup.config.data.num_clients}, but this node says num-partitions = {nodes}: set "
            f"num-clients = {nodes}, or --federation-config 'num-supernodes={setup.config.data.num_clients}'."
        )
    return setup


def _partition(context: Context) -> int:
    if PARTITION_ID not in context.node_config:
        raise ConfigError(
            "this SuperNode has no partition-id: start it with --node-config 'partition-id=0 num-partitions=2'."
        )
    return int(context.node_config[PARTITION_ID])


def _asked_batches(message: Message) -> list[SampleBatch]:
    asked: Any = message.content.config_records[DRAW]
    labels = torch.tensor(asked[LABELS], dtype=torch.int64) if asked[LABELS] else None
    return split_batches(asked[SEEDS], labels, asked[BATCH_SIZE])


def _weights(message: Message) -> Weights:
    arrays: ArrayRecord = message.content.array_records[ARRAYS]
    return to_weights(arrays)


def _metrics(training: TrainResult, num_examples: int) -> MetricRecord:
    return MetricRecord(
        {
            "loss": training.loss,
            "final-loss": training.final_loss,
            "steps": training.steps,
            "seconds": training.seconds,
            NUM_EXAMPLES: num_examples,
        }
    )


def _reply(message: Message, metrics: MetricRecord, records: dict[str, ArrayRecord] | None = None) -> Message:
    return Message(RecordDict({**(records or {}), METRICS: metrics}), reply_to=message)
