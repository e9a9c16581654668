"""The ClientApp's handlers for any task: each takes a message and returns the worker's answer."""

from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from fedddpm_app import weights as weights_module
from fedddpm_app.client.checks import check_records, check_result
from fedddpm_app.client.masking import STEPS, Masking, open_session
from fedddpm_app.client.policy import check_action, check_evaluation, check_round
from fedddpm_app.client.requests import Request, partition_of, reply_to, text_in
from fedddpm_app.client.security_log import SiteLog
from fedddpm_app.client.setup import SetUp, checked
from fedddpm_app.client.state import ClientState, ClientStateError
from fedddpm_app.client.worker import this_process
from fedddpm_app.config import ConfigError, without_paths
from fedddpm_app.federation.messages.reasons import declined
from fedddpm_app.federation.messages.records import (
    ACTION,
    ARRAYS,
    NUM_EXAMPLES,
    NUM_PARTITIONS,
    OWN_MODEL,
    PARTITION_ID,
    PROBE,
    SHARES_MEMORY,
    STATE_RUN,
    VALUES,
    WORKER,
)
from fedddpm_app.federation.privacy.examples import is_private
from fedddpm_app.progress import logger
from fedddpm_app.training.actions import ActionAnswer
from fedddpm_app.training.declined import DeclinedError
from fedddpm_app.transport import Packed, can_read
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
            return _agree(Request(checked(self._set_up(context), context), message, context))
        if message.metadata.message_type.startswith(ACTION):
            return _act(Request(checked(self._set_up(context), context), message, context))
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
        return reply_to(message, known)

    @app.query("forget")
    def forget(message: Message, context: Context) -> Message:
        """Remove this client's state of the run."""
        ClientState(set_up(context).config, context, text_in(message, STATE_RUN), partition_of(context)).forget()
        return reply_to(message, {})

    @app.query("look")
    def look(message: Message, context: Context) -> Message:
        """Load this client's images, and report the number of training images."""
        worker = checked(set_up(context), context).worker
        return reply_to(message, {NUM_EXAMPLES: len(worker.task.train_data(partition_of(context)))})

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Train one round from the global weights."""
        return _train(Request(checked(set_up(context), context), message, context))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        """Evaluate on this client's held-out examples."""
        return _evaluate(Request(checked(set_up(context), context), message, context))

    return app


def _act(request: Request) -> Message:
    """Run the client action that the message names."""
    name, setup = request.message.metadata.message_type.removeprefix(ACTION), request.setup
    action = setup.strategy.client_actions.get(name)
    if action is None:
        raise ConfigError(
            f'algorithm = "{setup.config.run.algorithm}" has no client action "{name}": run the same code on the '
            "server and the clients."
        )
    check_action(setup.config, setup.policy, name, action, request.server_round)
    weights = request.end.unpack()
    request.check_action_masked(name, action, weights)
    if action.trains:
        request.count_training()
    values: Any = dict(request.message.content.config_records.get(VALUES, ConfigRecord()))
    state, ledger = request.open_state(), request.ledger()
    answer = setup.worker.act(action, request.partition, request.server_round, weights, values, state, ledger)
    if not isinstance(answer, ActionAnswer):
        raise TypeError(f'the client action "{name}" returned {type(answer).__name__}: return an ActionAnswer.')
    check_records(answer.records, f'the records of the client action "{name}"')
    return request.reply(answer.metrics, answer.records, "fp32" if action.exact else None)


def _agree(request: Request) -> Message:
    """Answer a message of secure aggregation other than its request to train."""
    setup, partition = request.setup, request.partition
    check_round(setup.config, setup.policy, request.server_round)
    session, step = open_session(setup.config, request.context, partition), STEPS[request.message.metadata.message_type]
    answer = step(session, setup.config, request.end.unpack(), lambda: len(setup.worker.task.train_data(partition)))
    return request.reply(answer.metrics, answer.records)


def _evaluate(request: Request) -> Message:
    setup = request.setup
    check_evaluation(setup.policy)
    if is_private(setup.strategy, setup.config):
        raise ConfigError("a private run asks no client to evaluate: a loss on its images has no noise.")
    loss, num_examples = setup.worker.evaluate(request.create_hook(request.open_state()))
    return reply_to(request.message, {"loss": loss, NUM_EXAMPLES: num_examples})


def _train(request: Request) -> Message:
    setup = request.setup
    check_round(setup.config, setup.policy, request.server_round)
    request.check_returned()
    request.check_masked()
    request.count_training()
    if setup.config.secure.aggregation:
        return _train_masked(request)
    keeps_residual = setup.config.transport.keeps_residuals
    state = request.open_state(keeps_residual=keeps_residual)
    hook = request.create_hook(state)
    result = setup.worker.train(hook, request.ledger())
    check_result(result.training, hook, keeps=setup.strategy.keeps_state(setup.config))
    trained = result.training.weights
    residual = _residual(request, state, trained) if keeps_residual else {}
    answer, lost = _pack_trained(request, trained, hook.round.global_weights, residual)
    if isinstance(state, ClientState):
        own = {OWN_MODEL: trained} if setup.strategy.keeps_model(setup.config) else {}
        state.save(hook.round.server_round, {**hook.kept, **own, **({RESIDUAL: lost} if keeps_residual else {})})
    metrics = {**result.training.metrics(), NUM_EXAMPLES: result.num_examples, **hook.metrics}
    sent = {name: request.end.pack(record) for name, record in hook.sent.items()}
    return reply_to(request.message, metrics, {ARRAYS: answer, **sent})


def _train_masked(request: Request) -> Message:
    """Train one round, and answer with a masked update; the weights themselves are not packed."""
    setup = request.setup
    session = open_session(setup.config, request.context, request.partition)
    masking, state = Masking(setup.config, request.message, session), request.open_state()
    hook = request.create_hook(state)
    result = setup.worker.train(hook, request.ledger())
    check_result(result.training, hook, keeps=setup.strategy.keeps_state(setup.config))
    answer = masking.answer(result.training, result.num_examples, hook)
    if isinstance(state, ClientState):
        state.save(hook.round.server_round, hook.kept)
    return request.reply(answer.metrics, answer.records)


def _pack_trained(request: Request, trained: Weights, base: Weights, residual: Weights) -> tuple[Packed, Weights]:
    """Pack the weights that the message asks for; return them with all rounding errors, also of earlier replies."""
    names = [*trained] if request.returned is None else request.returned
    due = {name: error for name, error in residual.items() if name in names}
    select = weights_module.select
    answer, lost = request.end.pack_trained(select(trained, names), select(base, names), due)
    return answer, residual | lost


def _residual(request: Request, state: Mapping[str, Weights], like: Weights) -> Weights:
    """Return the rounding error of the client's last reply, as far as it has the shapes of ``like``."""
    try:
        known = state.get(RESIDUAL, {})
        return {name: error for name, error in known.items() if error.shape == like[name].shape}
    except ClientStateError as error:
        if request.setup.strategy.keeps_state(request.setup.config):
            raise
        logger.warning(
            "client %d: the rounding error of its last reply is lost, and the next reply does not correct it: %s",
            request.partition,
            error,
        )
        return {}
