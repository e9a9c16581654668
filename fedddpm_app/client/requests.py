"""What a message asks of a client, and what no message gets: a server may name other rounds, runs and weights."""

from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message

from fedddpm_app.client.record import RunRecord
from fedddpm_app.client.setup import ClientSetup
from fedddpm_app.client.state import state_folder
from fedddpm_app.config import ConfigError
from fedddpm_app.federation.messages.records import ACTION, ARRAYS, CONFIG, EXCHANGE, PARTITION_ID, RETURNED, STATE_RUN
from fedddpm_app.federation.privacy.secure_checks import PRETRAIN, sends_own_models
from fedddpm_app.training.privacy_ledger import PrivacyLedger
from fedddpm_app.weights import Weights, digest

_DEFAULT = ".default"  # Flower takes "train.default" for "train"


def partition_of(context: Context) -> int:
    """Return the partition of a node; raise ``ConfigError`` if it has none."""
    if PARTITION_ID not in context.node_config:
        raise ConfigError(
            "this SuperNode has no partition-id: start it with --node-config 'partition-id=0 num-partitions=2'."
        )
    return int(context.node_config[PARTITION_ID])


def number_in(message: Message, key: str) -> int:
    """Return a whole number of a message."""
    config: ConfigRecord = message.content.config_records[CONFIG]
    return int(config[key])  # type: ignore[arg-type]


def text_in(message: Message, key: str) -> str:
    """Return a text of a message."""
    config: ConfigRecord = message.content.config_records[CONFIG]
    return str(config[key])


def arrays_in(message: Message) -> ArrayRecord:
    """Return the weights of a message."""
    arrays: ArrayRecord = message.content.array_records[ARRAYS]
    return arrays


def count_training(setup: ClientSetup, message: Message, context: Context) -> None:
    """Count a training, so that a server which names an earlier round gets no more of them than the site allows."""
    if setup.policy.max_rounds:
        record = RunRecord(setup.config, context, partition_of(context))
        kind = message.metadata.message_type.removesuffix(_DEFAULT)
        record.count_training(kind, setup.policy.max_rounds)


def check_masked(setup: ClientSetup, message: Message, context: Context, sent: Weights | None = None) -> None:
    """Raise ``ConfigError`` if a client of a run with masked updates is asked for weights without a mask.

    Except for the model of its own that FedDDPM needs, if clients share models: all requests for it must have the same
    weights, ``sent``.
    """
    record = RunRecord(setup.config, context, partition_of(context))
    if not setup.config.secure.aggregation:
        if record.is_masked:
            raise ConfigError("the server asks for weights without a mask, in a run with secure-aggregation = true.")
    elif message.metadata.message_type == f"{ACTION}{PRETRAIN}":
        if not sends_own_models(setup.strategy, setup.config):
            raise ConfigError("the server asks for a model of its own, which this run does not need.")
        if sent is not None and not record.has_started_from(digest(sent)):
            raise ConfigError("the server asks for another model of its own, which starts from other weights.")


def check_returned(setup: ClientSetup, message: Message) -> None:
    """Raise ``ConfigError`` if the server asks for weights that stay at the client."""
    if not setup.strategy.keeps_model(setup.config):
        return
    model, asked = setup.worker.trainer.model, message.content.config_records.get(EXCHANGE)
    names: Any = [*model.state_dict()] if asked is None else asked[RETURNED]
    if kept := sorted({*names} & setup.strategy.stays_at_clients(setup.config, model))[:3]:
        raise ConfigError(
            f'the server asks for {", ".join(kept)}, which algorithm = "{setup.config.run.algorithm}" leaves at the '
            "client: run the same code on the server and the clients."
        )


def ledger_of(setup: ClientSetup, message: Message, context: Context) -> PrivacyLedger | None:
    """Return the client's record of the privacy that it has spent in this run; None for a run that is not private."""
    if not setup.config.dp.is_on:
        return None
    run = str(int(text_in(message, STATE_RUN)))
    RunRecord(setup.config, context, partition_of(context)).check_account(run)
    name = f"run-{run}-client-{partition_of(context):04d}.json"
    return PrivacyLedger(state_folder(setup.config) / "privacy" / name)
