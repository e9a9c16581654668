"""The ClientApp's handlers, for any task: a message in, the worker's answer out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedddpm_app import weights as weights_module
from fedddpm_app.config import Config, ConfigError
from fedddpm_app.device import cpu_threads
from fedddpm_app.diffusion.sampling import SampleBatch, split_batches
from fedddpm_app.federation.base import FederatedDiffusion
from fedddpm_app.federation.client_state import ClientState, ClientStateError
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
    PROBE,
    SEEDS,
    SERVER_ROUND,
    SHARES_MEMORY,
    STATE_ROUND,
    WORKER,
)
from fedddpm_app.federation.transport import (
    Packed,
    add_residual,
    can_read,
    down_dtype,
    get_wire,
    pack_answer,
    residual_of,
    unpack,
)
from fedddpm_app.hooks import LocalRound, TrainingHook, TrainResult
from fedddpm_app.progress import logger
from fedddpm_app.weights import Weights
from fedddpm_app.worker import Worker, this_process

RESIDUAL = "wire-residual"  # among what a client keeps, beside its algorithm's records


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
        """Tell the partition id that this node holds, in which process it works, and whether files can travel."""
        probe = message.content.array_records.get(PROBE)
        shares = probe is not None and can_read(probe)
        told = MetricRecord({PARTITION_ID: _partition(context), WORKER: this_process(), SHARES_MEMORY: int(shares)})
        return _reply(message, told)

    @app.query("forget")
    def forget(message: Message, context: Context) -> Message:
        """Remove what this client kept for the run."""
        ClientState(set_up(context).config, context, _partition(context)).forget()
        return _reply(message, MetricRecord())

    @app.query("draw")
    def draw(message: Message, context: Context) -> Message:
        """Draw images of the auxiliary set from this client's pretrained model, which comes back with the request."""
        images = set_up(context).worker.draw(unpack(_arrays(message)), _asked_batches(message))
        content = RecordDict({METRICS: MetricRecord(), IMAGES: ArrayRecord({IMAGES: Array(images.numpy())})})
        return Message(content, reply_to=message)

    @app.train("pretrain")
    def pretrain(message: Message, context: Context) -> Message:
        """Train a local model for FedDDPM's auxiliary set."""
        setup = _checked(set_up(context), context)
        with cpu_threads(setup.config.run.client_threads):
            return _pretrain(setup, message, context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Train one round from the global weights."""
        setup = _checked(set_up(context), context)
        with cpu_threads(setup.config.run.client_threads):
            return _train(setup, message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        """Evaluate on this client's held-out examples."""
        setup = _checked(set_up(context), context)
        state = _open_state(setup, message, context)
        loss, num_examples = setup.worker.evaluate(_create_hook(setup, message, context, state))
        return _reply(message, MetricRecord({"loss": loss, NUM_EXAMPLES: num_examples}))

    return app


def _pretrain(setup: ClientSetup, message: Message, context: Context) -> Message:
    result = setup.worker.pretrain(_unpack(setup, _arrays(message)), _partition(context))
    metrics = _metrics(result.training, result.num_examples)
    if result.label_counts:
        metrics[LABEL_COUNTS] = result.label_counts
    return _reply(message, metrics, {ARRAYS: _pack(setup, message, context, result.training.weights)})


def _train(setup: ClientSetup, message: Message, context: Context) -> Message:
    keeps_residual = setup.config.transport.keeps_residuals
    state = _open_state(setup, message, context, keeps_residual)
    hook = _create_hook(setup, message, context, state)
    result = setup.worker.train(hook)
    _check_finite(result.training, hook)
    weights, kept = result.training.weights, dict(hook.kept)
    if keeps_residual:
        weights, kept[RESIDUAL] = _with_residual(setup, _partition(context), weights, hook.round.global_weights, state)
    if isinstance(state, ClientState):
        state.save(hook.round.server_round, kept)
    metrics = _metrics(result.training, result.num_examples)
    metrics.update(hook.metrics)
    sent = {name: _pack(setup, message, context, record) for name, record in hook.sent.items()}
    sent[ARRAYS] = _pack(setup, message, context, weights, hook.round.global_weights)
    return _reply(message, metrics, sent)


def _create_hook(setup: ClientSetup, message: Message, context: Context, state: Mapping[str, Weights]) -> TrainingHook:
    """Make the algorithm's hook for the round that a message is about."""
    received = {
        name: _unpack(setup, arrays) for name, arrays in message.content.array_records.items() if name != ARRAYS
    }
    server_round, weights = _told(message, SERVER_ROUND), _unpack(setup, _arrays(message))
    return setup.strategy.hook(LocalRound(setup.config, _partition(context), server_round, weights, received, state))


def _open_state(
    setup: ClientSetup, message: Message, context: Context, keeps_residual: bool = False
) -> Mapping[str, Weights]:
    """Return what the client kept of its last round, read when it is asked for; nothing where none is kept."""
    if not (setup.strategy.hook.keeps_state or keeps_residual):
        return {}
    return ClientState(setup.config, context, _partition(context), _told(message, STATE_ROUND))


def _with_residual(
    setup: ClientSetup, partition_id: int, weights: Weights, base: Weights, state: Mapping[str, Weights]
) -> tuple[Weights, Weights]:
    """Return the weights with what rounding lost in the last round, and what it will lose of them."""
    wire = get_wire(setup.config.transport.wire_dtype)
    try:
        residual = state.get(RESIDUAL, {})
    except ClientStateError as error:
        if setup.strategy.hook.keeps_state:
            raise
        logger.warning("client %d: what rounding lost of its last reply stays lost: %s", partition_id, error)
        residual = {}
    weights = add_residual(weights, residual)
    return weights, residual_of(weights, wire.decode(wire.encode(weights, base), weights, base))


def _unpack(setup: ClientSetup, record: ArrayRecord) -> Weights:
    return unpack(record, down_dtype(setup.config.transport.wire_dtype))


def _pack(
    setup: ClientSetup, message: Message, context: Context, weights: Weights, base: Weights | None = None
) -> Packed:
    """Pack an answer the way it was asked for; as a difference only from a ``base``."""
    dtype = setup.config.transport.wire_dtype
    dtype = down_dtype(dtype) if base is None else dtype
    return pack_answer(_arrays(message), weights, dtype, _partition(context), base)


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


def _arrays(message: Message) -> ArrayRecord:
    arrays: ArrayRecord = message.content.array_records[ARRAYS]
    return arrays


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


def _reply(message: Message, metrics: MetricRecord, records: Mapping[str, Packed] | None = None) -> Message:
    arrays = {name: packed.record for name, packed in (records or {}).items()}
    return Message(RecordDict({**arrays, METRICS: metrics}), reply_to=message)
