"""The base strategy: what all federated algorithms share, on Flower's own round loop."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from fedddpm_app import weights as weights_module
from fedddpm_app.config import Config, ConfigError, is_due
from fedddpm_app.device import resolve_device
from fedddpm_app.federation.accounting import Accounting, Mark
from fedddpm_app.federation.aggregation import AggregationRule, check_rule
from fedddpm_app.federation.clients import Clients
from fedddpm_app.federation.messaging import exchange
from fedddpm_app.federation.participants import discover
from fedddpm_app.federation.ports import Recorder
from fedddpm_app.federation.records import ARRAYS, FORGET, to_arrays, to_weights
from fedddpm_app.federation.replies import Reply
from fedddpm_app.hooks import TrainingHook
from fedddpm_app.progress import logger
from fedddpm_app.task import Task
from fedddpm_app.training import Trainer
from fedddpm_app.weights import Weights

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class RoundFailedError(RuntimeError):
    """No client gave a usable reply, so there is nothing to go on with."""


def check_finite(weights: Weights, what: str, fix: str) -> None:
    """Raise ``RoundFailedError`` where weights are NaN or infinite, before they reach every client."""
    if not weights_module.is_finite(weights):
        raise RoundFailedError(f"{what} are not finite: {fix}.")


class FederatedDiffusion(FedAvg):
    """Federated averaging, with the hooks that algorithms override.

    A round: sample partitions -> ``broadcast`` beside the weights -> clients train with ``hook`` -> check the
    replies -> ``aggregate``, in the order of the partition ids (so that it is the same bit for bit whatever arrives
    first) -> ``after_aggregation`` -> EMA -> clients evaluate -> one line in ``stats.jsonl``.

    Parameters
    ----------
    config : Config
        The run's config.
    recorder : Recorder
        Takes what is kept.
    task : Task
        Model, loss and data; only controls ask for data.
    **kwargs
        Passed on to Flower's ``FedAvg``.

    Attributes
    ----------
    hook : type of TrainingHook
        The client half.
    own_aggregation : str
        Why the algorithm's server step cannot be replaced by another ``aggregator``; empty where it can.
    trains_on_clients : bool
        Whether a round trains on clients at all; without it a round is ``after_aggregation`` alone.
    train_metrics, evaluate_metrics : sequence of str
        The numbers that every reply must have; Flower averages them, weighted by ``num-examples``.
    clients : Clients
        Known from the start of ``start``.
    reply_references : dict of str to Weights
        The ArrayRecords that a training reply must have, by name, each like its reference.
    ema_weights : Weights or None
        Moving average of the global weights over the rounds; None before the first round.
    client_models : dict of int to Weights
        Models by partition id, of algorithms that have no global model; else empty.
    train_loss : float
        The clients' mean loss over the round's steps, weighted by their examples; NaN before the first round.
    accounting : Accounting
        Bytes and seconds spent so far.
    """

    hook: ClassVar[type[TrainingHook]] = TrainingHook
    own_aggregation: ClassVar[str] = ""
    trains_on_clients: ClassVar[bool] = True
    train_metrics: Sequence[str] = ("loss", "final-loss", "steps", "seconds")
    evaluate_metrics: Sequence[str] = ("loss",)
    clients: Clients

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
        self._rule = AggregationRule(config)
        self._sampled: list[int] = []
        self._state_rounds: dict[int, int] = {}
        self._mark = Mark(self.accounting)
        self._round: dict[str, object] = {}

    # ---- hooks for algorithms -------------------------------------------------------------------

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Raise ``ConfigError`` for values that this algorithm cannot use."""
        if cls.own_aggregation and config.run.aggregator != "fedavg":
            raise ConfigError(
                f'aggregator = "{config.run.aggregator}" has no meaning with algorithm = "{config.run.algorithm}": '
                f'{cls.own_aggregation}; use aggregator = "fedavg".'
            )
        check_rule(config)

    @classmethod
    def total_steps(cls, config: Config, client_steps: int) -> int:
        """Return the optimiser steps of a run, of which ``client_steps`` in clients' rounds, to tell the time left."""
        return client_steps

    def prepare(self, grid: Grid, weights: Weights) -> Weights:
        """Do what comes before round 1; return the weights it starts from (here: unchanged)."""
        return weights

    def broadcast(self, server_round: int) -> Mapping[str, Weights]:
        """Return what clients get beside the global weights, by name (here: nothing)."""
        return {}

    def check_reply(self, reply: Reply) -> None:
        """Raise ``ReplyRefusedError`` for a training reply that this algorithm cannot use."""

    def aggregate(self, server_round: int, replies: Sequence[Reply]) -> Weights:
        """Return the new global weights (here: by the rule of the ``aggregator`` key).

        Parameters
        ----------
        server_round : int
            From 1; ``global_weights`` are what it started from.
        replies : sequence of Reply
            At least one, checked, by partition id; ``reply.load()`` gives a client's weights.
        """
        rule = self._rule
        if len(replies) < rule.least_replies:
            text = "round %d: %s needs %d replies and %d came: the global weights stay as they are"
            logger.warning(text, server_round, rule.name, rule.least_replies, len(replies))
            return self.global_weights
        parameters = self._names_of if rule.steps else ()
        return rule.aggregate(server_round, self._arrays, replies, parameters, self.grid)

    def after_aggregation(self, server_round: int, weights: Weights) -> Weights:
        """Return the round's global weights, given what ``aggregate`` made (here: that)."""
        return weights

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
        """Find the clients, ``prepare``, then run Flower's rounds; see ``Strategy.start``."""
        schedule, data = self.config.schedule, self.config.data
        participants = discover(grid, data.num_clients, schedule.node_timeout)
        self.grid = grid
        self.clients = Clients(participants, self.accounting, data.max_examples_per_client)
        self.initial_weights = to_weights(initial_arrays)
        self.reply_references = {ARRAYS: self.initial_weights}
        result = super().start(
            grid,
            to_arrays(self.prepare(grid, self.initial_weights)),
            num_rounds,
            timeout,
            train_config,
            evaluate_config,
            lambda server_round, current: self._finish_round(server_round, current, evaluate_fn),
        )
        if self.hook.keeps_state:
            self._let_clients_forget()
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address the weights to the round's partitions."""
        self._mark = Mark(self.accounting)
        self._arrays = arrays
        self.__dict__.pop("global_weights", None)
        run = self.config.run
        self._sampled = self.clients.participants.sample(run.clients_per_round, run.seed, server_round)
        self._round = {"phase": "round", "round": server_round, "clients": self._sampled}
        if not self.trains_on_clients:
            return []
        along = {name: to_arrays(weights) for name, weights in self.broadcast(server_round).items()}
        return self._address(MessageType.TRAIN, {ARRAYS: arrays, **along}, server_round)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the replies, aggregate them, and let the algorithm have its say."""
        self.accounting.seconds["train"] += self._mark.since("s")["s"]
        weights, metrics = (
            self._aggregate_clients(server_round, replies) if self.trains_on_clients else (self.global_weights, None)
        )
        weights = self.after_aggregation(server_round, weights)
        check_finite(weights, f"the global weights of round {server_round}", "lower the learning rates")
        self._update_ema(server_round, weights)
        return to_arrays(weights), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the round's clients for their held-out loss, where an evaluation is due."""
        due = is_due(self.config.schedule.evaluate_every, server_round, self.config.run.num_rounds)
        if not due or self.config.data.held_out_fraction == 0:
            self._sampled = []
        self._evaluate_mark = Mark(self.accounting)
        return self._address(MessageType.EVALUATE, {ARRAYS: arrays}, server_round)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the clients' held-out losses."""
        what = f"evaluation of round {server_round}"
        accepted = self.clients.accept(replies, self._sampled, what, {}, self.evaluate_metrics)
        self.accounting.seconds["evaluate"] += self._evaluate_mark.since("s")["s"]
        metrics = super().aggregate_evaluate(server_round, [reply.message for reply in accepted])
        if metrics is not None:
            self._round["client-eval/loss"] = metrics["loss"]
        return metrics

    # ---- what hooks use -------------------------------------------------------------------------

    @cached_property
    def trainer(self) -> Trainer:
        """The server's own training of the task's model, for corrections and controls."""
        config, task = self.config, self.task
        device = resolve_device(config.run.device)
        return Trainer(task.create_model(), task.loss_fn, config.training, device, config.run.precision)

    @cached_property
    def global_weights(self) -> Weights:
        """What the current round started from."""
        return to_weights(self._arrays)

    @property
    def parameter_names(self) -> list[str]:
        """The weights that training changes by gradients, each once; others, such as running means, are averaged."""
        return list(dict.fromkeys(self._names_of.values()))

    @contextmanager
    def own_phase(self) -> Iterator[Mark]:
        """Give a mark of the body's own: what it spends is left out of the current round's line."""
        mark = Mark(self.accounting)
        yield mark
        self._mark.leave_out(mark)

    @cached_property
    def _names_of(self) -> dict[str, str]:
        """Maps each parameter's names in ``state_dict``, of which a tied one has several, to its first."""
        first: dict[int, str] = {}
        named = self.task.create_model().named_parameters(remove_duplicate=False)
        return {name: first.setdefault(id(p), name) for name, p in named if p.requires_grad}

    def with_parameters(self, weights: Weights, parameters: Weights) -> Weights:
        """Return ``weights`` with its parameters, by all their names, taken from ``parameters``."""
        return weights | {name: parameters[first] for name, first in self._names_of.items()}

    def record(self, **stats: object) -> None:
        """Add figures to the current round's line in ``stats.jsonl``."""
        self._round |= stats

    def _address(self, message_type: str, records: Mapping[str, ArrayRecord], server_round: int) -> list[Message]:
        timeout = self.config.schedule.round_timeout
        return self.clients.address(self._sampled, message_type, records, server_round, timeout, self._state_rounds)

    def _aggregate_clients(self, server_round: int, replies: Iterable[Message]) -> tuple[Weights, MetricRecord]:
        what = f"round {server_round}"
        accepted = self.clients.accept(
            replies, self._sampled, what, self.reply_references, self.train_metrics, self.check_reply
        )
        if not accepted:
            first = self._sampled[0]
            raise RoundFailedError(
                f"{what}: none of the {len(self._sampled)} clients answered well; client {first}: "
                f"{self.clients.refusals[first]}"
            )
        metrics = self.train_metrics_aggr_fn([reply.message.content for reply in accepted], self.weighted_by_key)
        self.train_loss = float(metrics["loss"])  # type: ignore[arg-type]
        self._round |= {
            "train/loss": self.train_loss,
            "train/final_loss": metrics["final-loss"],
            "train/client_loss": {str(reply.partition_id): reply.number("loss") for reply in accepted},
            "train/num_examples": sum(reply.num_examples for reply in accepted),
        }
        self._state_rounds |= {reply.partition_id: server_round for reply in accepted}
        weights = self.aggregate(server_round, accepted)
        return weights_module.cast_like(weights, self.initial_weights), metrics

    def _let_clients_forget(self) -> None:
        """Tell all clients to remove the state that they kept for this run."""
        timeout, node_of = self.config.schedule.node_timeout, self.clients.participants.node_of
        for _ in exchange(self.grid, self.clients.address(list(node_of), FORGET, {}, 0, timeout), timeout):
            continue

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
        self._round |= {**(metrics or {}), **self._mark.since("time/round_s")}
        self.recorder.append(self._round)
        return metrics
