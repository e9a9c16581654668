"""Flower ClientApp: a message in, the worker's answer out."""

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedddpm_app.algorithms import get_algorithm
from fedddpm_app.config import Config, ConfigError, load_config
from fedddpm_app.federation.records import (
    ARRAYS,
    CONFIG,
    LABEL_COUNTS,
    METRICS,
    NUM_EXAMPLES,
    NUM_PARTITIONS,
    PARTITION_ID,
    SERVER_ROUND,
    to_arrays,
    to_weights,
)
from fedddpm_app.progress import configure_logging
from fedddpm_app.weights import Weights
from fedddpm_app.worker import LocalResult, get_worker

app = ClientApp()
configure_logging()


@app.query()
def identify(message: Message, context: Context) -> Message:
    """Tell the partition id that this node holds."""
    metrics = MetricRecord({PARTITION_ID: _partition(context)})
    return Message(RecordDict({METRICS: metrics}), reply_to=message)


@app.train("pretrain")
def pretrain(message: Message, context: Context) -> Message:
    """Train a local model for FedDDPM's auxiliary set."""
    result = get_worker(_config(context)).pretrain(_weights(message), _partition(context))
    return _trained(message, result)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round from the global weights."""
    config = _config(context)
    hook = get_algorithm(config).hook()
    result = get_worker(config).train(_weights(message), _partition(context), _server_round(message), hook)
    return _trained(message, result)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the global weights on this client's held-out images."""
    loss, num_examples = get_worker(_config(context)).evaluate(_weights(message), _partition(context))
    metrics = MetricRecord({"loss": loss, NUM_EXAMPLES: num_examples})
    return Message(RecordDict({METRICS: metrics}), reply_to=message)


def _config(context: Context) -> Config:
    config = load_config(context.run_config)
    nodes = context.node_config.get(NUM_PARTITIONS, config.data.num_clients)
    if nodes != config.data.num_clients:
        raise ConfigError(
            f"num-clients = {config.data.num_clients}, but this node says num-partitions = {nodes}: set "
            f"num-clients = {nodes}, or --federation-config 'num-supernodes={config.data.num_clients}'."
        )
    return config


def _partition(context: Context) -> int:
    if PARTITION_ID not in context.node_config:
        raise ConfigError(
            "this SuperNode has no partition-id: start it with --node-config 'partition-id=0 num-partitions=2'."
        )
    return int(context.node_config[PARTITION_ID])


def _weights(message: Message) -> Weights:
    arrays: ArrayRecord = message.content.array_records[ARRAYS]
    return to_weights(arrays)


def _server_round(message: Message) -> int:
    config: ConfigRecord = message.content.config_records[CONFIG]
    return int(config[SERVER_ROUND])  # type: ignore[arg-type]


def _trained(message: Message, result: LocalResult) -> Message:
    training = result.training
    metrics = MetricRecord(
        {
            "loss": training.loss,
            "final-loss": training.final_loss,
            "steps": training.steps,
            "seconds": training.seconds,
            NUM_EXAMPLES: result.num_examples,
        }
    )
    if result.label_counts:
        metrics[LABEL_COUNTS] = result.label_counts
    return Message(RecordDict({ARRAYS: to_arrays(training.weights), METRICS: metrics}), reply_to=message)
