"""The base strategy: Flower's round loop, and the methods that a federated algorithm overrides."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from fedddpm_app import weights as weights_module
from fedddpm_app.apportion import Shares
from fedddpm_app.config import Config
from fedddpm_app.device import cpu_threads
from fedddpm_app.federation.accounting import Accounting
from fedddpm_app.federation.admission import warn_of_decisive, warn_of_warmup
from fedddpm_app.federation.aggregation import AggregationRule
from fedddpm_app.federation.architecture import Reshape, follow_change, restore_architecture
from fedddpm_app.federation.clients import Clients
from fedddpm_app.federation.cost import images_per_step
from fedddpm_app.federation.description import AlgorithmDescription
from fedddpm_app.federation.errors import RoundFailedError, TooFewRepliesError, check_finite, check_weights
from fedddpm_app.federation.messages.actions import NO_RECORDS, NO_VALUES, ActionCall
from fedddpm_app.federation.messages.messaging import StreamingGrid
from fedddpm_app.federation.messages.records import ARRAYS, to_arrays, to_weights
from fedddpm_app.federation.messages.replies import Reply
from fedddpm_app.federation.messages.streaming import ReplyStream
from fedddpm_app.federation.nodes.survey import survey_sites
from fedddpm_app.federation.ports import Recorder
from fedddpm_app.federation.privacy.clients import ClientPrivacy
from fedddpm_app.federation.privacy.examples import Spending
from fedddpm_app.federation.rounds.evaluation import RoundEvaluation
from fedddpm_app.federation.rounds.exchanged import Exchanged
from fedddpm_app.federation.rounds.loop import EvaluateFn, Rounds
from fedddpm_app.federation.rounds.noisy_training import NoisyTraining
from fedddpm_app.federation.rounds.round_log import RoundLog
from fedddpm_app.federation.rounds.secure_training import SecureTraining
from fedddpm_app.federation.rounds.training import RoundTraining
from fedddpm_app.federation.server_state import Checkpoints, load_models, load_named_state, named_state
from fedddpm_app.progress import logger
from fedddpm_app.training.actions import Value
from fedddpm_app.training.privacy import private_metrics
from fedddpm_app.training.task import Task
from fedddpm_app.training.trainer import Trainer, create_trainer
from fedddpm_app.transport import Transport
from fedddpm_app.transport.outbox import Outbox
from fedddpm_app.weights import ParameterNames, Weights


class FederatedStrategy(AlgorithmDescription, FedAvg):
    """Federated averaging, with methods that algorithms override; see also ``AlgorithmDescription``.

    A round (``Rounds``): sample clients -> send the weights and ``broadcast`` -> clients train with ``hook`` -> each
    reply is checked on arrival and passed to ``aggregate``, in the order of the partition ids (so that the result is
    the same bit for bit, whatever the order of arrival) -> ``after_aggregation`` -> EMA -> clients evaluate -> one line
    in ``stats.jsonl`` -> checkpoint.

    Parameters
    ----------
    config : Config
        The run's config.
    recorder : Recorder
        Stores the run's results.
    task : Task
        Model, loss and data; only control algorithms read the data.
    **kwargs
        Passed on to Flower's ``FedAvg``.

    Attributes
    ----------
    clients : Clients
        Set at the beginning of ``start``.
    sampled : list of int
        The partitions of the current round.
    attempt : int
        0, or the number of earlier attempts at the current round.
    reply_references : dict of str to Weights
        The records of weights that a training reply must have, by name: each must have the names, shapes and dtypes of
        its reference.
    ema_weights : Weights or None
        Moving average of the global weights over the rounds; None before the first round.
    initial_weights : Weights
        The weights that the run started from, or those with which its present architecture began.
    architecture : str
        The digest of the present architecture, see ``shapes``; empty for the architecture that the run started with.
    client_models : dict of int to Weights
        Models by partition id, for algorithms without a global model; otherwise empty. Checkpoints contain them.
    shares : Shares
        The parts of ``client_models`` in the run's images, if they generate them together; otherwise empty: each of
        these models is then measured alone. An algorithm that sets it adds it to its ``state_attributes``.
    exchanges : dict of int to Exchanged
        What each client of the current round exchanges.
    train_loss : float
        The clients' mean loss over the round's steps, weighted by their examples; set after ``aggregate``. In a run
        with private rounds it stays NaN.
    spending : Spending
        The privacy that clients have spent.
    transport : Transport
        Carries the weights; available while ``start`` runs.
    outbox : Outbox
        Packs the weights for the clients, once for all of them; available while ``start`` runs.
    accounting : Accounting
        Bytes and seconds spent so far.
    round_log : RoundLog
        The current round's line in ``stats.jsonl``.
    """

    state_attributes: ClassVar[Sequence[str]] = (
        "train_loss",
        "accounting",
        "clients",
        "_rule",
        "architecture",
        "spending",
        "client_privacy",
        "round_log",
    )
    clients: Clients
    transport: Transport
    outbox: Outbox

    def __init__(self, config: Config, recorder: Recorder, task: Task, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.recorder = recorder
        self.task = task
        self.accounting = Accounting(images_per_step(config))
        self.ema_weights: Weights | None = None
        self.architecture = ""
        self.train_loss = float("nan")
        self.spending = Spending()
        self.client_privacy = ClientPrivacy(config, recorder)
        if config.dp.train.is_private:
            self.train_metrics = private_metrics(self.train_metrics)
        self.client_models: dict[int, Weights] = {}
        self.shares = Shares()
        self.exchanges: dict[int, Exchanged] = {}
        self.reply_references: dict[str, Weights] = {}
        self.sampled: list[int] = []
        self.attempt = 0
        self.round_log = RoundLog(self.accounting)
        self.checkpoints = Checkpoints(self)
        self._rule = AggregationRule(config)
        self._resumed: tuple[int, Mapping[str, Weights], Mapping[str, Any]] | None = None

    # ---- to override ----------------------------------------------------------------------------

    def prepare(self, grid: Grid, weights: Weights) -> Weights:
        """Do the work before round 1; return the weights that round 1 starts from (here: unchanged).

        A run that is resumed from a checkpoint calls ``load_state`` in its place.
        """
        return weights

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint: ``state_attributes``, and a kept optimiser state."""
        trainer = self.trainer.state_dict() if "trainer" in self.__dict__ else {}
        return {"attributes": named_state(self, self.state_attributes), "trainer": trainer}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue with the state of a checkpoint."""
        load_named_state(self, state["attributes"])
        if state["trainer"]:
            self.trainer.load_state_dict(state["trainer"])

    def after_checkpoint(self, server_round: int) -> None:
        """Remove files that only a run resumed from an earlier round would need (here: none)."""

    def broadcast(self, server_round: int) -> Mapping[str, Weights]:
        """Return the weights that clients receive in addition to the global weights, by name (here: none)."""
        return {}

    @classmethod
    def reads_single_replies(cls) -> str:
        """Return the method among those below that a subclass overrides, and that gets single clients' weights."""
        methods = ("aggregate", "check_reply", "exchanged")
        return next((name for name in methods if getattr(cls, name) is not getattr(FederatedStrategy, name)), "")

    def exchanged(self, server_round: int, partitions: Sequence[int]) -> Mapping[int, Exchanged]:
        """Return the weights that the round exchanges with each client, both ways (here: all global weights, with all).

        A client that is not named exchanges all of the global weights. It is called once for each attempt at a round,
        and may ask clients. See ``Exchanged``, and ``checked_exchanges`` for the rules. ``has_model`` says whether a
        client can get a part. ``aggregate`` then averages each weight over the clients that return it, and a weight
        that no client returns stays as it is.
        """
        return {}

    def evaluated(self, server_round: int) -> Mapping[int, Weights]:
        """Return the models of a run without a global model that stand for a round, by partition id.

        It is called when an evaluation, a sheet or the pipelines need them, maybe more than once, and again for the
        last round after the end of ``start``. A client without a model is left out; without any model nothing is shown.
        """
        return self.client_models

    def change_architecture(self, server_round: int, weights: Weights) -> Reshape | None:
        """Return how the shapes of the weights change from now on (here: None, they do not).

        Called before round 1, with round 0, and after each round, with its global weights. The result is a function
        from weights of the present shapes to weights of the new ones, with the same names. It is applied to the global
        weights, their EMA and ``client_models``; an algorithm's own attributes are its own matter. The round's
        evaluation and checkpoint are those of the new model.
        """
        return None

    def check_reply(self, reply: Reply) -> None:
        """Raise ``ReplyRefusedError`` for a training reply that this algorithm cannot use."""

    def aggregate(self, server_round: int, replies: Iterator[Reply]) -> Weights:
        """Return the new global weights (here: by the rule of the ``aggregator`` key).

        Parameters
        ----------
        server_round : int
            From 1; the round started from ``global_weights``.
        replies : iterator of Reply
            Checked, in the order of the partition ids; each is yielded as soon as it is its turn. After the last one,
            the iterator raises ``TooFewRepliesError`` if there were fewer than ``min-replies``: change the algorithm's
            state after the loop over the replies, because the round is then repeated.
            ``reply.load()`` returns a client's weights, see ``exchanged``. Read the replies in one pass and keep none
            (``weights.RunningMean`` folds their weights): memory then does not grow with the number of clients.
        """
        if any(each.is_partial for each in self.exchanges.values()):
            parts = ((reply.load(), reply.num_examples) for reply in replies)
            return weights_module.mean_by_name(parts, self.global_weights)
        parameters = self.parameters if self._rule.steps else ()
        aggregated = self._rule.aggregate(server_round, self.global_weights, replies, parameters, self.grid)
        return self.global_weights if aggregated is None else aggregated

    def after_aggregation(self, server_round: int, weights: Weights) -> Weights:
        """Return the round's global weights, given the result of ``aggregate`` (here: unchanged)."""
        return weights

    def average(self, server_round: int, weights: Weights) -> Weights:
        """Return the EMA over the rounds up to this round, whose global weights are ``weights``.

        It starts at the weights of round 1; a run's samples and metrics are of the EMA.
        """
        training = self.config.training
        decay = training.ema_decay_at(training.server_ema_decay, server_round)
        return weights_module.lerp(self.ema_weights or weights, weights, 1.0 - decay)

    # ---- to use ---------------------------------------------------------------------------------

    @cached_property
    def trainer(self) -> Trainer:
        """The server's trainer of the task's model, for corrections and control algorithms."""
        return create_trainer(self.config, self.task, self.initial_weights if self.architecture else None)

    @cached_property
    def parameters(self) -> ParameterNames:
        """Names of the weights that training changes by gradients; others, such as running means, are averaged."""
        return ParameterNames(self.task.create_model())

    @property
    def rule_keeps_momenta(self) -> bool:
        """Whether the aggregation rule has momenta of the weights' shapes."""
        return bool(self._rule.state_dict())

    @cached_property
    def global_weights(self) -> Weights:
        """The weights that the current round started from."""
        return to_weights(self._arrays)

    def has_model(self, partition: int) -> bool:
        """Return whether a client has kept the model of an earlier round, see ``keeps_model``."""
        return self.keeps_model(self.config) and self.clients.state_rounds.get(partition, 0) > 0

    def record(self, **stats: object) -> None:
        """Add values to the current round's line in ``stats.jsonl``; before round 1, to the line ``initial``.

        See ``RoundLog.add`` for the names and values that a line can have.
        """
        self.round_log.add(stats)

    def ask_clients(
        self,
        action: str,
        weights: Weights | None = None,
        *,
        values: Mapping[str, Value] = NO_VALUES,
        like: Mapping[str, Weights] = NO_RECORDS,
        partitions: Sequence[int] | None = None,
        timeout: float | None = None,
        check: Callable[[Reply], None] | None = None,
    ) -> ReplyStream:
        """Send one of ``client_actions`` to clients, and return the stream of their replies.

        Parameters
        ----------
        action : str
            The name of the action.
        weights : Weights, optional
            Sent to the clients.
        values : mapping of str to scalar or list
            Sent in addition to the weights.
        like : mapping of str to Weights
            A reference (names, shapes, dtypes) for each declared record except ``arrays``.
        partitions : sequence of int, optional
            The clients that carry out the action; by default the round's sampled clients, and before round 1 all
            connected clients.
        timeout : float, optional
            Seconds to wait; by default ``round-timeout``.
        check : callable, optional
            Raises ``ReplyRefusedError`` for a reply that cannot be used although it is as declared.

        Returns
        -------
        ReplyStream
            The messages are sent when it is read, which can be done once.
            The replies that match the declaration; read them by ``answers``, or one by one by ``as_they_come``. A
            client without such a reply is named in a warning and in the round's line (``<action>/left_out``), and left
            out.
        """
        if partitions is None:
            partitions = self.sampled or self.clients.present(self.config.waiting.quorum(self.config.data.num_clients))
        call = self.action_call(action, timeout)
        stream = call.ask(partitions, weights or {}, values, dict.fromkeys(partitions, like), check)
        stream.on_close = lambda: self.record(**stream.left_out(action))
        return stream

    def action_call(self, action: str, timeout: float | None = None) -> ActionCall:
        """Return one of ``client_actions``, ready to be sent message by message."""
        wait = self.config.waiting.round_timeout if timeout is None else timeout
        declared = self.client_actions[action].for_run(self.config)
        return ActionCall(action, declared, self.grid, self.clients, self.transport, self.round_log.server_round, wait)

    # ---- Flower's loop --------------------------------------------------------------------------

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Find the clients, call ``prepare`` or continue from a checkpoint, then run the rounds.

        See Flower's ``Strategy.start``, and ``Rounds``.
        """
        self.initial_weights = to_weights(initial_arrays)
        self.reply_references[ARRAYS] = self.initial_weights
        self.transport = Transport(self.config.transport)
        self.outbox = Outbox(self.transport)
        with cpu_threads(self.config.run.server_threads), closing(self.transport):
            self._find_clients(grid)
            first, weights = self._begin(grid)
            streaming: Any = StreamingGrid(grid, self.clients.participants.under_way)
            configs = (train_config or ConfigRecord(), evaluate_config or ConfigRecord())
            result = Rounds(self, streaming, timeout, *configs).run(
                first,
                num_rounds,
                to_arrays(weights),
                lambda server_round, current: self._finish_round(server_round, current, evaluate_fn),
            )
            self.recorder.check_checkpoint()  # a resumed run then does not need the clients' states
            if self.keeps_state(self.config) or self.config.transport.keeps_residuals:
                self.clients.forget(grid, self.config.waiting.node_timeout)
            return result

    def resume(self, server_round: int, models: Mapping[str, Weights], state: Mapping[str, Any]) -> None:
        """Have ``start`` continue after a round of an earlier run, with the models and the state of its checkpoint."""
        self._resumed = (server_round, models, state)

    @property
    def resumed_round(self) -> int:
        """The round of the checkpoint that ``start`` continues from; 0 for a new run."""
        return self._resumed[0] if self._resumed else 0

    def _begin(self, grid: Grid) -> tuple[int, Weights]:
        """Return the first round to run, and the weights that it starts from."""
        if self._resumed is not None:
            server_round, models, state = self._resumed
            restore_architecture(self, models, state)
            weights = load_models(self, models, self.initial_weights)
            if server_round == 0:
                self.ema_weights = None
            self.load_state(state)
            return server_round + 1, weights
        prepared = self.prepare(grid, self.initial_weights)
        check_weights(prepared, "prepare")
        weights = follow_change(self, 0, prepared)
        self.checkpoints.save(0, weights)
        return 1, weights

    def abandon_round(self, reason: str) -> None:
        """Undo and record an attempt at a round that got too few replies."""
        self._training.abandon(reason)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the messages with the weights for the round's clients."""
        self._arrays = arrays
        self.__dict__.pop("global_weights", None)
        self._training = self._kind_of_training(self, server_round)
        return self._training.messages(arrays)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the replies, aggregate them, and call ``after_aggregation``."""
        weights, metrics = self.global_weights, None
        if self.trains_on_clients:
            weights, metrics = self._training.aggregate(replies)
        self.accounting.seconds["train"] += self.round_log.span.spent("s")["s"]
        try:
            weights = self.after_aggregation(server_round, weights)
            check_weights(weights, "after_aggregation")
        except TooFewRepliesError as error:  # the round cannot be repeated: its replies have changed the state
            raise RoundFailedError(str(error)) from error
        check_finite(weights, f"the global weights of round {server_round}", "lower the learning rates")
        self.ema_weights = self.average(server_round, weights)
        return to_arrays(follow_change(self, server_round, weights)), metrics

    @property
    def _kind_of_training(self) -> type[RoundTraining]:
        if self.config.client_dp.budget.is_private:
            return NoisyTraining
        return SecureTraining if self.config.secure.aggregation else RoundTraining

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the round's clients for their held-out loss, if an evaluation is due."""
        self._evaluation = RoundEvaluation(self, server_round)
        return self._evaluation.messages(arrays)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the clients' held-out losses."""
        metrics = super().aggregate_evaluate(server_round, self._evaluation.accepted(replies))
        if metrics is not None:
            self.round_log.add({"client-eval/loss": metrics["loss"]})
        return metrics

    def _find_clients(self, grid: Grid) -> None:
        """Find the run's clients, and choose how weights travel to them."""
        config = self.config
        self.grid = grid
        self.clients = Clients.meet(grid, config, self.accounting, self.transport, self.recorder)
        per_round = config.run.clients_per_round or config.data.num_clients
        under_way = self.clients.participants.under_way or per_round
        self.transport.settle(self.clients.participants.share_memory, self.initial_weights, under_way)
        logger.info("transport: %s, wire-dtype %s", self.transport.name, config.transport.wire_dtype)
        if config.data.partition == "sites":
            survey_sites(self.clients, grid, config, self.recorder)
        else:
            self.clients.admission.sizes |= enumerate(self.task.client_sizes() or [])
        warn_of_decisive(self.clients.admission.sizes)
        if self.trains_on_clients:
            warn_of_warmup(config.training, self.clients.admission.sizes)
        if self.trains_on_clients and type(self).aggregate is FederatedStrategy.aggregate:
            self._rule.log_memory(self.initial_weights, per_round)

    def _finish_round(
        self, server_round: int, arrays: ArrayRecord, evaluate_fn: EvaluateFn | None
    ) -> MetricRecord | None:
        """Evaluate the global model, and write the round's line; ``server_round`` is 0 before round 1."""
        with self.accounting.timed("server-evaluate"):
            metrics = evaluate_fn(server_round, arrays) if evaluate_fn else None
        if server_round == 0:
            self.round_log.add(metrics or {})
            self.recorder.append({"phase": "initial", "round": 0, **self.round_log.take()})
            return metrics
        self.round_log.add(metrics or {})
        self.recorder.append(self.round_log.close())
        self.checkpoints.save(server_round, to_weights(arrays))
        return metrics
