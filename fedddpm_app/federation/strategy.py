"""The base strategy: what all federated algorithms share, and the hooks that they override."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

from flwr.serverapp import Grid

from fedddpm_app.config import Config, ConfigError
from fedddpm_app.federation.aggregation import AggregationRule, check_rule
from fedddpm_app.federation.ports import Recorder
from fedddpm_app.federation.replies import Reply
from fedddpm_app.federation.rounds import FederatedRounds
from fedddpm_app.training.task import Task
from fedddpm_app.training.trainer import Trainer, create_trainer
from fedddpm_app.weights import ParameterNames, Weights


class FederatedStrategy(FederatedRounds):
    """Federated averaging, with the hooks that algorithms override.

    A round: sample partitions -> ``broadcast`` beside the weights -> clients train with ``hook`` -> each reply is
    checked as it comes and goes into ``aggregate``, in the order of the partition ids (so that it is the same bit for
    bit whatever arrives first) -> ``after_aggregation`` -> EMA -> clients evaluate -> one line in ``stats.jsonl``.

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
        The records of weights that a training reply must have, by name, each like its reference.
    ema_weights : Weights or None
        Moving average of the global weights over the rounds; None before the first round.
    client_models : dict of int to Weights
        Models by partition id, of algorithms that have no global model; else empty.
    train_loss : float
        The clients' mean loss over the round's steps, weighted by their examples; known after ``aggregate``.
    transport : Transport
        How weights travel; there while ``start`` runs.
    accounting : Accounting
        Bytes and seconds spent so far.
    round_log : RoundLog
        The current round's line.
    """

    def __init__(self, config: Config, recorder: Recorder, task: Task, **kwargs: Any) -> None:
        super().__init__(config, recorder, task, **kwargs)
        self._rule = AggregationRule(config)

    def log_memory(self, num_replies: int) -> None:
        """Log what the rule holds of a round, where it cannot fold it."""
        if type(self).aggregate is FederatedStrategy.aggregate:
            self._rule.log_memory(self.initial_weights, num_replies)

    # ---- to override ----------------------------------------------------------------------------

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

    def aggregate(self, server_round: int, replies: Iterator[Reply]) -> Weights:
        """Return the new global weights (here: by the rule of the ``aggregator`` key).

        Parameters
        ----------
        server_round : int
            From 1; ``global_weights`` are what it started from.
        replies : iterator of Reply
            At least one, checked, in the order of the partition ids, each yielded as soon as it is its turn:
            ``reply.load()`` gives a client's weights. Take them in one pass and keep none (``weights.RunningMean``
            folds them), and memory does not grow with the number of clients.
        """
        parameters = self.parameters if self._rule.steps else ()
        aggregated = self._rule.aggregate(server_round, self.global_weights, replies, parameters, self.grid)
        return self.global_weights if aggregated is None else aggregated

    def after_aggregation(self, server_round: int, weights: Weights) -> Weights:
        """Return the round's global weights, given what ``aggregate`` made (here: that)."""
        return weights

    # ---- to use ---------------------------------------------------------------------------------

    @cached_property
    def trainer(self) -> Trainer:
        """The server's own training of the task's model, for corrections and controls."""
        return create_trainer(self.config, self.task)

    @cached_property
    def parameters(self) -> ParameterNames:
        """The names of the weights that training changes by gradients; others, such as running means, are averaged."""
        return ParameterNames(self.task.create_model())

    def record(self, **stats: object) -> None:
        """Add metrics to the current round's line in ``stats.jsonl``."""
        self.round_log.add(stats)
