"""Flower's round loop, with the places where an algorithm comes in."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cached_property
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from fedddpm_app import weights as weights_module
from fedddpm_app.config import Config, is_due
from fedddpm_app.device import cpu_threads
from fedddpm_app.federation.accounting import Accounting, Span
from fedddpm_app.federation.clients import Clients
from fedddpm_app.federation.errors import check_finite
from fedddpm_app.federation.messaging import StreamingGrid
from fedddpm_app.federation.participants import is_deployed
from fedddpm_app.federation.ports import Recorder
from fedddpm_app.federation.records import ARRAYS, to_arrays, to_weights
from fedddpm_app.federation.replies import Reply, ReplySpec
from fedddpm_app.federation.round_log import RoundLog
from fedddpm_app.federation.streaming import ReplyStream, collecting, starting_with, with_progress
from fedddpm_app.federation.survey import survey_sites
from fedddpm_app.progress import logger
from fedddpm_app.training.hooks import TrainingHook
from fedddpm_app.training.task import Task
from fedddpm_app.transport import Transport
from fedddpm_app.transport.outbox import Outbox
from fedddpm_app.weights import Weights

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class FederatedRounds(FedAvg):
    """The loop of ``FederatedStrategy``, which says what the abstract methods are for."""

    hook: ClassVar[type[TrainingHook]] = TrainingHook
    own_aggregation: ClassVar[str] = ""
    trains_on_clients: ClassVar[bool] = True
    train_metrics: Sequence[str] = ("loss", "final-loss", "steps", "seconds")
    evaluate_metrics: Sequence[str] = ("loss",)
    clients: Clients
    transport: Transport

    def __init__(self, config: Config, recorder: Recorder, task: Task, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.recorder = recorder
        self.task = task
        self.accounting = Accounting()
        self.ema_weights: Weights | None = None
        self.train_loss = float("nan")
        self.client_models: dict[int, Weights] = {}
        self.reply_references: dict[str, Weights] = {}
        self._sampled: list[int] = []
        self._state_rounds: dict[int, int] = {}
        self.round_log = RoundLog(self.accounting)

    @abstractmethod
    def prepare(self, grid: Grid, weights: Weights) -> Weights:
        """Do what comes before round 1."""

    @abstractmethod
    def broadcast(self, server_round: int) -> Mapping[str, Weights]:
        """Return what clients get beside the global weights."""

    @abstractmethod
    def check_reply(self, reply: Reply) -> None:
        """Raise ``ReplyRefusedError`` for a training reply that the algorithm cannot use."""

    @abstractmethod
    def log_memory(self, num_replies: int) -> None:
        """Log what is held of a round that cannot be folded."""

    @abstractmethod
    def aggregate(self, server_round: int, replies: Iterator[Reply]) -> Weights:
        """Return the new global weights."""

    @abstractmethod
    def after_aggregation(self, server_round: int, weights: Weights) -> Weights:
        """Return the round's global weights, given what ``aggregate`` made."""

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
        """Find the clients, ``prepare``, then run Flower's rounds; see ``Strategy.start``."""
        self.initial_weights = to_weights(initial_arrays)
        self.reply_references[ARRAYS] = self.initial_weights
        self.transport = Transport(self.config.transport)
        self._outbox = Outbox(self.transport)
        with cpu_threads(self.config.run.server_threads), closing(self.transport):
            self._meet_clients(grid)
            result = super().start(
                StreamingGrid(grid, self.clients.participants.under_way),  # type: ignore[arg-type]
                to_arrays(self.prepare(grid, self.initial_weights)),
                num_rounds,
                timeout,
                train_config,
                evaluate_config,
                lambda server_round, current: self._finish_round(server_round, current, evaluate_fn),
            )
            if self.hook.keeps_state or self.config.transport.keeps_residuals:
                self.clients.forget(grid, self.config.schedule.node_timeout)
            return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address the weights to the round's partitions."""
        self._arrays = arrays
        self.__dict__.pop("global_weights", None)
        run, participants = self.config.run, self.clients.participants
        self.clients.present(self.config.schedule.min_replies if self.trains_on_clients else 0)
        self._sampled = participants.sample(run.clients_per_round, run.seed, server_round)
        self.round_log.begin(server_round, self._sampled, participants.absent(self.config.data.num_clients))
        if not self.trains_on_clients:
            return []
        return self._address(MessageType.TRAIN, arrays, self.broadcast(server_round), server_round)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the replies, aggregate them, and let the algorithm have its say."""
        weights, metrics = (
            self._aggregate_clients(server_round, replies) if self.trains_on_clients else (self.global_weights, None)
        )
        self.accounting.seconds["train"] += self.round_log.span.spent("s")["s"]
        weights = self.after_aggregation(server_round, weights)
        check_finite(weights, f"the global weights of round {server_round}", "lower the learning rates")
        self._update_ema(server_round, weights)
        return to_arrays(weights), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the round's clients for their held-out loss, where an evaluation is due."""
        due = is_due(self.config.evaluation.eval_every, server_round, self.config.run.num_rounds)
        wanted = due and self.config.data.held_out_fraction > 0
        self._sampled = [p for p in self.clients.present() if p in self._sampled] if wanted else []
        self._evaluate_span = Span(self.accounting)
        return self._address(MessageType.EVALUATE, arrays, {}, server_round)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the clients' held-out losses."""
        what = f"evaluation of round {server_round}"
        stream = ReplyStream(self.clients, replies, self._sampled, what, ReplySpec(metrics=self.evaluate_metrics))
        accepted = sorted(stream.as_they_come(), key=lambda reply: reply.partition_id)
        self.accounting.seconds["evaluate"] += self._evaluate_span.spent("s")["s"]
        metrics = super().aggregate_evaluate(server_round, [reply.message for reply in accepted])
        if metrics is not None:
            self.round_log.add({"client-eval/loss": metrics["loss"]})
        return metrics

    @cached_property
    def global_weights(self) -> Weights:
        """What the current round started from."""
        return to_weights(self._arrays)

    def _meet_clients(self, grid: Grid) -> None:
        """Find the run's clients, and settle how weights travel to them."""
        config = self.config
        self.grid = grid
        self.clients = Clients.meet(grid, config, self.accounting, self.transport)
        under_way = self.clients.participants.under_way or config.run.clients_per_round or config.data.num_clients
        self.transport.settle(self.clients.participants.share_memory, self.initial_weights, under_way)
        logger.info("transport: %s, wire-dtype %s", self.transport.name, config.transport.wire_dtype)
        if config.data.partition == "sites":
            survey_sites(self.clients, grid, config, self.recorder)
        if self.trains_on_clients:
            self.log_memory(config.run.clients_per_round or config.data.num_clients)

    def _address(
        self, message_type: str, arrays: ArrayRecord, along: Mapping[str, Weights], server_round: int
    ) -> list[Message]:
        """Return messages to the sampled partitions with the weights, and what goes along."""
        if not self._sampled:
            return []
        records = {ARRAYS: self._outbox.pack(ARRAYS, arrays, to_weights(arrays))}
        records |= {name: self._outbox.pack(name, weights, weights) for name, weights in along.items()}
        timeout = self.config.schedule.round_timeout
        return self.clients.address(self._sampled, message_type, records, server_round, timeout, self._state_rounds)

    def _aggregate_clients(self, server_round: int, replies: Iterable[Message]) -> tuple[Weights, MetricRecord]:
        what, expect = f"round {server_round}", self.transport.expect
        records = {
            name: expect(reference, self.global_weights if name == ARRAYS else None)
            for name, reference in self.reply_references.items()
        }
        stream = ReplyStream(
            self.clients, replies, self._sampled, what, ReplySpec(records, self.train_metrics, self.check_reply)
        )
        told: list[Reply] = []
        in_order = collecting(stream.by_partition(self.recorder.scratch), told)
        if is_deployed(self.grid.run):
            in_order = with_progress(in_order, "train", server_round, self.config.run.num_rounds)
        first = next(in_order, None)
        if first is None:
            raise stream.too_few(0, 1)
        every = starting_with(first, in_order)
        del first
        weights = self.aggregate(server_round, every)
        for _ in in_order:  # those that an algorithm did not ask for are checked and counted too
            continue
        metrics = self.train_metrics_aggr_fn([reply.message.content for reply in told], self.weighted_by_key)
        self._log_replies(server_round, told, metrics)
        self.round_log.add(stream.left_out("train"))
        if len(told) < self.config.schedule.min_replies:
            raise stream.too_few(len(told), self.config.schedule.min_replies)
        return weights_module.cast_like(weights, self.initial_weights), metrics

    def _log_replies(self, server_round: int, replies: list[Reply], metrics: MetricRecord) -> None:
        self.train_loss = float(metrics["loss"])  # type: ignore[arg-type]
        self.round_log.add(
            {
                "train/loss": self.train_loss,
                "train/final_loss": metrics["final-loss"],
                "train/client_loss": {str(reply.partition_id): reply.number("loss") for reply in replies},
                "train/num_examples": sum(reply.num_examples for reply in replies),
            }
        )
        self._state_rounds |= {reply.partition_id: server_round for reply in replies}

    def _update_ema(self, server_round: int, weights: Weights) -> None:
        """Fold the round into the EMA; early rounds count more: decay = min(decay, r / (9 + r)), r from 0."""
        past = server_round - 1
        decay = min(self.config.training.server_ema_decay, past / (9 + past))
        self.ema_weights = weights_module.lerp(self.ema_weights or weights, weights, 1.0 - decay)

    def _finish_round(
        self, server_round: int, arrays: ArrayRecord, evaluate_fn: EvaluateFn | None
    ) -> MetricRecord | None:
        with self.accounting.timed("server-evaluate"):
            metrics = evaluate_fn(server_round, arrays) if evaluate_fn else None
        if server_round == 0:
            self.recorder.append({"phase": "initial", "round": 0, **(metrics or {})})
            return metrics
        self.round_log.add(metrics or {})
        self.recorder.append(self.round_log.close())
        return metrics
