"""The ClientApp's handlers for any task: each takes a message and returns the worker's answer."""

from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedddpm_app import weights as weights_module
from fedddpm_app.client.masking import STEPS, Masking, open_session
from fedddpm_app.client.policy import check_action, check_evaluation, check_round, trains
from fedddpm_app.client.requests import (
    arrays_in,
    check_masked,
    check_returned,
    count_training,
    ledger_of,
    number_in,
    partition_of,
    text_in,
)
from fedddpm_app.client.security_log import SiteLog
from fedddpm_app.client.setup import ClientSetup, SetUp, checked
from fedddpm_app.client.state import ClientState, ClientStateError
from fedddpm_app.client.worker import this_process
from fedddpm_app.config import ConfigError, WireDtype, without_paths
from fedddpm_app.federation.messages.reasons import declined
from fedddpm_app.federation.messages.records import (
    ACTION,
    ARRAYS,
    CONFIG,
    EXCHANGE,
    METRICS,
    NUM_EXAMPLES,
    NUM_PARTITIONS,
    OWN_MODEL,
    PARTITION_ID,
    PROBE,
    RETURNED,
    SERVER_ROUND,
    SHARES_MEMORY,
    STATE_ROUND,
    STATE_RUN,
    VALUES,
    WORKER,
)
from fedddpm_app.federation.privacy.examples import is_private
from fedddpm_app.progress import logger
from fedddpm_app.training.actions import Metrics
from fedddpm_app.training.declined import DeclinedError, TrainingDivergedError
from fedddpm_app.training.hooks import LocalRound, TrainingHook, TrainResult
from fedddpm_app.transport import ClientEnd, Packed, can_read
from fedddpm_app.weights import Weights

RESIDUAL = "wire-residual"  # record in a client's state, in addition to its algorithm's records


class FederatedClientApp(ClientApp):
    """A ClientApp that also runs the client actions of the run's strategy.

    Flower dispatches only registered message types, but actions are known only when a message names its run.

    Parameters
    ----------
    set_up : callable
        Called with the context of every message that requests training, evaluation or an action.
    """

    def __init__(self, set_up: SetUp) -> None:
        super().__init__()
        self._set_up = set_up

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message; a client that declines says so in one sentence, here and to the server."""
        log = SiteLog(message, context, partition_of(context))
        log.join()
        try:
            reply = self._answer(message, context)
        except Exception as error:
            log.failed(error)
            if not isinstance(error, DeclinedError):
                raise
            logger.warning("client %d declines: %s", partition_of(context), error)
            return Message(declined(without_paths(str(error))), reply_to=message)
        log.answered()
        return reply

    def _answer(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type in STEPS:
            return _agree(self._set_up(context), message, context)
        if message.metadata.message_type.startswith(ACTION):
            return _act(self._set_up(context), message, context)
        return super().__call__(message, context)


def create_client_app(set_up: SetUp) -> ClientApp:
    """Create the ClientApp; ``set_up`` as in ``FederatedClientApp``."""
    app = FederatedClientApp(set_up)

    @app.query()
    def identify(message: Message, context: Context) -> Message:
        """Report this node's partition id, its process, and whether it can read the server's files."""
        probe = message.content.array_records.get(PROBE)
        shares = probe is not None and can_read(probe)
        known: Mapping[str, int] = {
            PARTITION_ID: partition_of(context),
            **{key: int(nodes) for key, nodes in context.node_config.items() if key == NUM_PARTITIONS},
            WORKER: this_process(),
            SHARES_MEMORY: int(shares),
        }
        return _reply(message, known)

    @app.query("forget")
    def forget(message: Message, context: Context) -> Message:
        """Remove this client's state of the run."""
        ClientState(set_up(context).config, context, text_in(message, STATE_RUN), partition_of(context)).forget()
        return _reply(message, {})

    @app.query("look")
    def look(message: Message, context: Context) -> Message:
        """Load this client's images, and report the number of training images."""
        worker = checked(set_up(context), context).worker
        return _reply(message, {NUM_EXAMPLES: len(worker.task.train_data(partition_of(context)))})

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Train one round from the global weights."""
        return _train(checked(set_up(context), context), message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        """Evaluate on this client's held-out examples."""
        setup = checked(set_up(context), context)
        check_evaluation(setup.policy)
        if is_private(setup.strategy, setup.config):
            raise ConfigError("a private run asks no client to evaluate: a loss on its images has no noise.")
        state = _open_state(setup, message, context)
        loss, num_examples = setup.worker.evaluate(_create_hook(setup, message, context, state))
        return _reply(message, {"loss": loss, NUM_EXAMPLES: num_examples})

    return app


def _act(setup: ClientSetup, message: Message, context: Context) -> Message:
    """Run the client action that the message names."""
    name, setup = message.metadata.message_type.removeprefix(ACTION), checked(setup, context)
    action = setup.strategy.client_actions.get(name)
    if action is None:
        raise ConfigError(
            f'algorithm = "{setup.config.run.algorithm}" has no client action "{name}": run the same code on the '
            "server and the clients."
        )
    check_action(setup.config, setup.policy, name, action, number_in(message, SERVER_ROUND))
    end = _end(setup, message, context)
    weights = end.unpack()
    check_masked(setup, message, context, weights)
    if trains(action):
        count_training(setup, message, context)
    values: Any = dict(message.content.config_records.get(VALUES, ConfigRecord()))
    state, ledger = _open_state(setup, message, context), ledger_of(setup, message, context)
    given = (partition_of(context), number_in(message, SERVER_ROUND), weights, values, state, ledger)
    answer = setup.worker.act(action, *given)
    dtype: WireDtype | None = "fp32" if action.exact else None
    return _reply(message, answer.metrics, {name: end.pack(record, dtype) for name, record in answer.records.items()})


def _agree(setup: ClientSetup, message: Message, context: Context) -> Message:
    """Answer a message of secure aggregation other than its request to train."""
    partition, setup = partition_of(context), checked(setup, context)
    check_round(setup.config, setup.policy, number_in(message, SERVER_ROUND))
    end, session = _end(setup, message, context), open_session(setup.config, context, partition)
    step = STEPS[message.metadata.message_type]
    answer = step(session, setup.config, end.unpack(), lambda: len(setup.worker.task.train_data(partition)))
    return _reply(message, answer.metrics, {name: end.pack(record) for name, record in answer.records.items()})


def _train(setup: ClientSetup, message: Message, context: Context) -> Message:
    check_round(setup.config, setup.policy, number_in(message, SERVER_ROUND))
    check_returned(setup, message)
    check_masked(setup, message, context)
    count_training(setup, message, context)
    if setup.config.secure.aggregation:
        return _train_masked(setup, message, context)
    keeps_residual = setup.config.transport.keeps_residuals
    state = _open_state(setup, message, context, keeps_residual)
    hook, end = _create_hook(setup, message, context, state), _end(setup, message, context)
    result = setup.worker.train(hook, ledger_of(setup, message, context))
    _check_finite(result.training, hook)
    trained = result.training.weights
    residual = _residual(setup, context, state, trained) if keeps_residual else {}
    answer, lost = _pack_trained(message, end, trained, hook.round.global_weights, residual)
    if isinstance(state, ClientState):
        own = {OWN_MODEL: trained} if setup.strategy.keeps_model(setup.config) else {}
        state.save(hook.round.server_round, {**hook.kept, **own, **({RESIDUAL: lost} if keeps_residual else {})})
    metrics = {**result.training.metrics(), NUM_EXAMPLES: result.num_examples, **hook.metrics}
    records = {ARRAYS: answer} | {name: end.pack(record) for name, record in hook.sent.items()}
    return _reply(message, metrics, records)


def _train_masked(setup: ClientSetup, message: Message, context: Context) -> Message:
    """Train one round, and answer with a masked update; the weights themselves are not packed."""
    masking = Masking(setup.config, message, open_session(setup.config, context, partition_of(context)))
    state = _open_state(setup, message, context)
    hook, end = _create_hook(setup, message, context, state), _end(setup, message, context)
    result = setup.worker.train(hook, ledger_of(setup, message, context))
    _check_finite(result.training, hook)
    answer = masking.answer(result.training, result.num_examples, hook)
    if isinstance(state, ClientState):
        state.save(hook.round.server_round, hook.kept)
    return _reply(message, answer.metrics, {name: end.pack(record) for name, record in answer.records.items()})


def _pack_trained(
    message: Message, end: ClientEnd, trained: Weights, base: Weights, residual: Weights
) -> tuple[Packed, Weights]:
    """Pack the weights that the message asks for; return them with all rounding errors, also of earlier replies."""
    asked = message.content.config_records.get(EXCHANGE)
    names: Any = list(trained) if asked is None else asked[RETURNED]
    due = {name: error for name, error in residual.items() if name in names}
    select = weights_module.select
    answer, lost = end.pack_trained(select(trained, names), select(base, names), due)
    return answer, residual | lost


def _create_hook(setup: ClientSetup, message: Message, context: Context, state: Mapping[str, Weights]) -> TrainingHook:
    """Create the algorithm's hook for the message's round."""
    end = _end(setup, message, context)
    received = {name: end.unpack(arrays) for name, arrays in message.content.array_records.items() if name != ARRAYS}
    server_round, weights = number_in(message, SERVER_ROUND), _with_own(setup, end.unpack(), state)
    return setup.strategy.hook(LocalRound(setup.config, partition_of(context), server_round, weights, received, state))


def _with_own(setup: ClientSetup, sent: Weights, state: Mapping[str, Weights]) -> Weights:
    """Return the weights that a client's round starts from: where none were sent, those of its own model."""
    if not setup.strategy.keeps_model(setup.config):
        return sent
    names = list(setup.worker.trainer.model.state_dict())
    own = state[OWN_MODEL] if len(sent) < len(names) else {}
    return {name: sent[name] if name in sent else own[name] for name in names}


def _open_state(
    setup: ClientSetup, message: Message, context: Context, keeps_residual: bool = False
) -> Mapping[str, Weights]:
    """Return the client's state of its last accepted round, which is read on first use; empty without state."""
    if not (setup.strategy.keeps_state(setup.config) or keeps_residual):
        return {}
    run_id, state_round = text_in(message, STATE_RUN), number_in(message, STATE_ROUND)
    return ClientState(setup.config, context, run_id, partition_of(context), state_round)


def _residual(setup: ClientSetup, context: Context, state: Mapping[str, Weights], like: Weights) -> Weights:
    """Return the rounding error of the client's last reply, as far as it has the shapes of ``like``."""
    try:
        known = state.get(RESIDUAL, {})
        return {name: error for name, error in known.items() if error.shape == like[name].shape}
    except ClientStateError as error:
        if setup.strategy.keeps_state(setup.config):
            raise
        logger.warning(
            "client %d: the rounding error of its last reply is lost, and the next reply does not correct it: %s",
            partition_of(context),
            error,
        )
        return {}


def _end(setup: ClientSetup, message: Message, context: Context) -> ClientEnd:
    return ClientEnd(arrays_in(message), setup.config.transport.wire_dtype, partition_of(context))


def _check_finite(training: TrainResult, hook: TrainingHook) -> None:
    """Raise ``TrainingDivergedError`` if the training diverged, before its state is saved."""
    for weights in (training.weights, *hook.kept.values(), *hook.sent.values()):
        if not weights_module.is_finite(weights):
            loss = "" if training.privacy else f", with a last loss of {training.final_loss}"
            raise TrainingDivergedError(f"its training diverged{loss}: lower learning-rate")


def _reply(message: Message, metrics: Metrics, records: Mapping[str, Packed] | None = None) -> Message:
    """Return a reply, with the round of the message that it answers."""
    arrays = {name: packed.record for name, packed in (records or {}).items()}
    answered = {SERVER_ROUND: number_in(message, SERVER_ROUND)} if CONFIG in message.content.config_records else {}
    return Message(RecordDict({**arrays, METRICS: MetricRecord({**metrics, **answered})}), reply_to=message)
