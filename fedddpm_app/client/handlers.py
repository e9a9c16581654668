"""The ClientApp's handlers, for any task: a message in, the worker's answer out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedddpm_app import weights as weights_module
from fedddpm_app.client.state import ClientState, ClientStateError
from fedddpm_app.client.worker import Worker, this_process
from fedddpm_app.config import Config, ConfigError
from fedddpm_app.device import cpu_threads
from fedddpm_app.diffusion.sampling import SampleBatch, split_batches
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
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.progress import logger
from fedddpm_app.training.hooks import LocalRound, TrainingHook, TrainResult
from fedddpm_app.transport import ClientEnd, Packed, can_read
from fedddpm_app.weights import Weights

RESIDUAL = "wire-residual"  # among what a client keeps, beside its algorithm's records


@dataclass(frozen=True)
class ClientSetup:
    """What a client needs to answer: the run's config, its algorithm, and the worker of this process."""

    config: Config
    strategy: type[FederatedStrategy]
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

    @app.query("look")
    def look(message: Message, context: Context) -> Message:
        """Load this client's images, and tell how many it trains on."""
        worker = _checked(set_up(context), context).worker
        return _reply(message, MetricRecord({NUM_EXAMPLES: len(worker.task.train_data(_partition(context)))}))

    @app.query("draw")
    def draw(message: Message, context: Context) -> Message:
        """Draw images of the auxiliary set from this client's pretrained model, which comes back with the request."""
        model = ClientEnd(_arrays(message), "fp32", _partition(context)).unpack()
        images = set_up(context).worker.draw(model, _asked_batches(message))
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
    end = _end(setup, message, context)
    result = setup.worker.pretrain(end.unpack(), _partition(context))
    metrics = _metrics(result.training, result.num_examples)
    if result.label_counts:
        metrics[LABEL_COUNTS] = result.label_counts
    return _reply(message, metrics, {ARRAYS: end.pack(result.training.weights)})


def _train(setup: ClientSetup, message: Message, context: Context) -> Message:
    keeps_residual = setup.config.transport.keeps_residuals
    state = _open_state(setup, message, context, keeps_residual)
    hook, end = _create_hook(setup, message, context, state), _end(setup, message, context)
    result = setup.worker.train(hook)
    _check_finite(result.training, hook)
    residual = _residual(setup, context, state) if keeps_residual else {}
    answer, lost = end.pack_trained(result.training.weights, hook.round.global_weights, residual)
    if isinstance(state, ClientState):
        state.save(hook.round.server_round, {**hook.kept, **({RESIDUAL: lost} if keeps_residual else {})})
    metrics = _metrics(result.training, result.num_examples)
    metrics.update(hook.metrics)
    return _reply(message, metrics, {ARRAYS: answer} | {name: end.pack(record) for name, record in hook.sent.items()})


def _create_hook(setup: ClientSetup, message: Message, context: Context, state: Mapping[str, Weights]) -> TrainingHook:
    """Make the algorithm's hook for the round that a message is about."""
    end = _end(setup, message, context)
    received = {name: end.unpack(arrays) for name, arrays in message.content.array_records.items() if name != ARRAYS}
    server_round = _told(message, SERVER_ROUND)
    return setup.strategy.hook(
        LocalRound(setup.config, _partition(context), server_round, end.unpack(), received, state)
    )


def _open_state(
    setup: ClientSetup, message: Message, context: Context, keeps_residual: bool = False
) -> Mapping[str, Weights]:
    """Return what the client kept of its last round, read when it is asked for; nothing where none is kept."""
    if not (setup.strategy.hook.keeps_state or keeps_residual):
        return {}
    return ClientState(setup.config, context, _partition(context), _told(message, STATE_ROUND))


def _residual(setup: ClientSetup, context: Context, state: Mapping[str, Weights]) -> Weights:
    """Return what rounding lost of the client's last reply, where that is known."""
    try:
        return state.get(RESIDUAL, {})
    except ClientStateError as error:
        if setup.strategy.hook.keeps_state:
            raise
        logger.warning("client %d: what rounding lost of its last reply stays lost: %s", _partition(context), error)
        return {}


def _end(setup: ClientSetup, message: Message, context: Context) -> ClientEnd:
    return ClientEnd(_arrays(message), setup.config.transport.wire_dtype, _partition(context))


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
