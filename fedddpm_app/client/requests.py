"""What a message asks of a client, and what no message gets: a server may name other rounds, runs and weights."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fedddpm_app.client.record import RunRecord
from fedddpm_app.client.setup import ClientSetup
from fedddpm_app.client.state import ClientState, state_folder
from fedddpm_app.config import ConfigError, WireDtype
from fedddpm_app.federation.messages.records import (
    ARRAYS,
    CONFIG,
    EXCHANGE,
    METRICS,
    OWN_MODEL,
    PARTITION_ID,
    RETURNED,
    SERVER_ROUND,
    STATE_ROUND,
    STATE_RUN,
)
from fedddpm_app.federation.privacy.secure_checks import PRETRAIN, PRETRAINING, is_unmasked, sends_own_models
from fedddpm_app.training.actions import ClientAction, Metrics
from fedddpm_app.training.hooks import LocalRound, TrainingHook
from fedddpm_app.training.privacy_ledger import PrivacyLedger
from fedddpm_app.transport import ClientEnd, Packed
from fedddpm_app.weights import Weights, digest

_DEFAULT = ".default"  # Flower takes "train.default" for "train"


def partition_of(context: Context) -> int:
    """Return the partition of a node; raise ``ConfigError`` if it has none."""
    if PARTITION_ID not in context.node_config:
        raise ConfigError(
            "this SuperNode has no partition-id: start it with --node-config 'partition-id=0 num-partitions=2'."
        )
    return int(context.node_config[PARTITION_ID])


def text_in(message: Message, key: str) -> str:
    """Return a text of a message."""
    config: ConfigRecord = message.content.config_records[CONFIG]
    return str(config[key])


def number_in(message: Message, key: str) -> int:
    """Return a whole number of a message."""
    config: ConfigRecord = message.content.config_records[CONFIG]
    return int(config[key])  # type: ignore[arg-type]


def reply_to(message: Message, metrics: Metrics, records: Mapping[str, Packed] | None = None) -> Message:
    """Return a reply, with the round of the message that it answers."""
    arrays = {name: packed.record for name, packed in (records or {}).items()}
    answered = {SERVER_ROUND: number_in(message, SERVER_ROUND)} if CONFIG in message.content.config_records else {}
    return Message(RecordDict({**arrays, METRICS: MetricRecord({**metrics, **answered})}), reply_to=message)


class Request:
    """A message to a client, with the parts of the client that answer it.

    Parameters
    ----------
    setup : ClientSetup
        The client's config, strategy, policy and worker.
    message : Message
        What is asked.
    context : Context
        Of the node.

    Attributes
    ----------
    partition : int
        The client's partition.
    """

    def __init__(self, setup: ClientSetup, message: Message, context: Context) -> None:
        self.setup = setup
        self.message = message
        self.context = context
        self.partition = partition_of(context)

    @property
    def server_round(self) -> int:
        """The round that the message names."""
        return number_in(self.message, SERVER_ROUND)

    @property
    def returned(self) -> Sequence[str] | None:
        """The names of the weights that the message asks for; None for all."""
        asked: Any = self.message.content.config_records.get(EXCHANGE)
        return None if asked is None else asked[RETURNED]

    @cached_property
    def end(self) -> ClientEnd:
        """The client's end of the transport, which unpacks the weights of the message, and packs those of its reply."""
        arrays: ArrayRecord = self.message.content.array_records[ARRAYS]
        return ClientEnd(arrays, self.setup.config.transport.wire_dtype, self.partition)

    def reply(self, metrics: Metrics, records: Mapping[str, Weights], dtype: WireDtype | None = None) -> Message:
        """Return the reply with these records of tensors, in ``dtype`` if that is not the run's."""
        return reply_to(self.message, metrics, {name: self.end.pack(each, dtype) for name, each in records.items()})

    # ---- what the client kept -------------------------------------------------------------------

    def open_state(self, *, keeps_residual: bool = False) -> Mapping[str, Weights]:
        """Return the client's state of its last accepted round, which is read on first use; empty without state."""
        if not (self.setup.strategy.keeps_state(self.setup.config) or keeps_residual):
            return {}
        run_id, state_round = text_in(self.message, STATE_RUN), number_in(self.message, STATE_ROUND)
        return ClientState(self.setup.config, self.context, run_id, self.partition, state_round)

    def ledger(self) -> PrivacyLedger | None:
        """Return the client's record of the privacy that it has spent in this run; None if the run is not private."""
        if not self.setup.config.dp.is_on:
            return None
        run = str(int(text_in(self.message, STATE_RUN)))
        self._record.check_account(run)
        name = f"run-{run}-client-{self.partition:04d}.json"
        return PrivacyLedger(state_folder(self.setup.config) / "privacy" / name)

    def create_hook(self, state: Mapping[str, Weights]) -> TrainingHook:
        """Create the algorithm's hook for the message's round."""
        arrays = self.message.content.array_records
        received = {name: self.end.unpack(each) for name, each in arrays.items() if name != ARRAYS}
        weights = self._with_own(self.end.unpack(), state)
        return self.setup.strategy.hook(
            LocalRound(self.setup.config, self.partition, self.server_round, weights, received, state)
        )

    def _with_own(self, sent: Weights, state: Mapping[str, Weights]) -> Weights:
        """Return the weights that a client's round starts from: where none were sent, those of its own model."""
        if not self.setup.strategy.keeps_model(self.setup.config):
            return sent
        names = list(self.setup.worker.trainer.model.state_dict())
        own = state[OWN_MODEL] if len(sent) < len(names) else {}
        return {name: sent[name] if name in sent else own[name] for name in names}

    # ---- what is refused ------------------------------------------------------------------------

    def count_training(self) -> None:
        """Count a training: a server that names an earlier round gets no more of them than the site allows."""
        if self.setup.policy.max_rounds:
            kind = self.message.metadata.message_type.removesuffix(_DEFAULT)
            self._record.count_training(kind, self.setup.policy.max_rounds)

    def check_masked(self) -> None:
        """Raise ``ConfigError`` if the client has begun a secure sum in this run, and its config has no masks now."""
        if not self.setup.config.secure.aggregation and self._record.is_masked:
            raise ConfigError("the server asks for weights without a mask, in a run with secure-aggregation = true.")

    def check_action_masked(self, name: str, action: ClientAction, sent: Weights) -> None:
        """Raise ``ConfigError`` if an action would hand over a training that no mask hides, in a run with masks.

        Except for the model of its own that FedDDPM needs, or images of it: all requests must have the same weights,
        ``sent``.
        """
        self.check_masked()
        setup = self.setup
        if not setup.config.secure.aggregation:
            return
        if is_unmasked(name, action):
            raise ConfigError(
                f'the server asks for "{name}", whose answer no mask hides, in a run with secure-aggregation = true.'
            )
        if name == PRETRAIN and not sends_own_models(setup.strategy, setup.config):
            raise ConfigError("the server asks for a model of its own, which this run does not need.")
        if name in PRETRAINING and not self._record.has_started_from(digest(sent)):
            raise ConfigError("the server asks for another model of its own, which starts from other weights.")

    def check_returned(self) -> None:
        """Raise ``ConfigError`` if the server asks for weights that stay at the client."""
        setup = self.setup
        if not setup.strategy.keeps_model(setup.config):
            return
        model = setup.worker.trainer.model
        names = model.state_dict() if self.returned is None else self.returned
        if kept := sorted({*names} & setup.strategy.stays_at_clients(setup.config, model))[:3]:
            raise ConfigError(
                f'the server asks for {", ".join(kept)}, which algorithm = "{setup.config.run.algorithm}" leaves at '
                "the client: run the same code on the server and the clients."
            )

    @property
    def _record(self) -> RunRecord:
        return RunRecord(self.setup.config, self.context, self.partition)
