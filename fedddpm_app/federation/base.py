"""The base strategy: what all federated diffusion algorithms share, on Flower's own round loop."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result

from fedddpm_app import weights as weights_module
from fedddpm_app.config import Config, is_due
from fedddpm_app.federation.accounting import Accounting, Mark
from fedddpm_app.federation.participants import Participants, discover
from fedddpm_app.federation.ports import Recorder
from fedddpm_app.federation.records import payload_bytes, request, to_arrays, to_weights
from fedddpm_app.federation.replies import Reply, ReplyRefusedError, accept_reply
from fedddpm_app.progress import logger
from fedddpm_app.weights import Weights

_TTL_MARGIN_SECONDS = 60.0
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class RoundFailedError(RuntimeError):
    """No client gave a usable reply, so there is nothing to go on with."""


def check_finite(weights: Weights, what: str, fix: str) -> None:
    """Raise ``RoundFailedError`` where weights are NaN or infinite, before they reach every client."""
    if not weights_module.is_finite(weights):
        raise RoundFailedError(f"{what} are not finite: {fix}.")


class FederatedDiffusion(FedAvg):
    """Federated averaging of a diffusion model, with the hooks that algorithms override.

    A round: sample partitions -> broadcast the weights -> check the replies -> Flower's weighted mean, in
    the order of the partition ids (so that it is the same bit for bit whatever arrives first) ->
    ``after_aggregation`` -> EMA -> clients evaluate -> one line in ``stats.jsonl``.

    Parameters
    ----------
    config : Config
        The run's config.
    recorder : Recorder
        Takes what is kept.
    **kwargs
        Passed on to Flower's ``FedAvg``.

    Attributes
    ----------
    participants : Participants
        The clients by partition id; known from the start of ``start``.
    ema_weights : Weights or None
        Moving average of the global weights over the rounds; None before the first round.
    accounting : Accounting
        Bytes and seconds spent so far.
    train_metrics, evaluate_metrics : sequence of str
        The numbers that every reply must have; Flower averages them, weighted by ``num-examples``.
    """

    participants: Participants
    train_metrics: Sequence[str] = ("loss", "final-loss", "steps", "seconds")
    evaluate_metrics: Sequence[str] = ("loss",)

    def __init__(self, config: Config, recorder: Recorder, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.recorder = recorder
        self.accounting = Accounting()
        self.ema_weights: Weights | None = None
        self._reference: Weights = {}
        self._awaited: list[int] = []
        self._round: dict[str, object] = {}

    # ---- hooks for algorithms -------------------------------------------------------------------

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Raise ``ConfigError`` for values that this algorithm cannot use (here: none)."""

    @classmethod
    def extra_steps(cls, config: Config) -> int:
        """Return the optimiser steps of a run besides its clients' rounds (here: none), to tell the time left."""
        return 0

    def prepare(self, grid: Grid, weights: Weights) -> Weights:
        """Do what comes before round 1; return the weights it starts from (here: unchanged)."""
        return weights

    def after_aggregation(self, server_round: int, weights: Weights) -> Weights:
        """Return the round's global weights, given the clients' mean (here: the mean itself)."""
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
        self.participants = discover(grid, self.config.data.num_clients, self.config.schedule.node_timeout)
        initial = to_weights(initial_arrays)
        self._reference = initial
        arrays = to_arrays(self.prepare(grid, initial))
        return super().start(
            grid,
            arrays,
            num_rounds,
            timeout,
            train_config,
            evaluate_config,
            lambda server_round, current: self._finish_round(server_round, current, evaluate_fn),
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Address the weights to the round's partitions."""
        self._mark = Mark(self.accounting)
        run = self.config.run
        self._awaited = self.participants.sample(run.clients_per_round, run.seed, server_round)
        self._round = {"phase": "round", "round": server_round, "clients": self._awaited}
        return self.address(self._awaited, MessageType.TRAIN, arrays, server_round, self.config.schedule.round_timeout)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the replies, average them, and let the algorithm have its say."""
        self.accounting.seconds["train"] += self._mark.since("s")["s"]
        accepted = self.accept(replies, self._awaited, f"round {server_round}", with_weights=True)
        arrays, metrics = super().aggregate_train(server_round, [reply.message for reply in accepted])
        if arrays is None:
            raise RoundFailedError(f"round {server_round}: none of the {len(self._awaited)} clients answered well.")
        self._round |= {
            "train/loss": metrics["loss"] if metrics else None,
            "train/final_loss": metrics["final-loss"] if metrics else None,
            "train/client_loss": {str(reply.partition_id): reply.number("loss") for reply in accepted},
            "train/num_examples": sum(reply.num_examples for reply in accepted),
        }
        weights = self.after_aggregation(server_round, to_weights(arrays))
        check_finite(weights, f"the global weights of round {server_round}", "lower the learning rates")
        self._update_ema(server_round, weights)
        return to_arrays(weights), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask the round's clients for their held-out loss, where an evaluation is due."""
        due = is_due(self.config.schedule.evaluate_every, server_round, self.config.run.num_rounds)
        if not due or self.config.data.held_out_fraction == 0:
            self._awaited = []
        self._evaluate_mark = Mark(self.accounting)
        return self.address(
            self._awaited, MessageType.EVALUATE, arrays, server_round, self.config.schedule.round_timeout
        )

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Average the clients' held-out losses."""
        accepted = self.accept(replies, self._awaited, f"evaluation of round {server_round}", with_weights=False)
        self.accounting.seconds["evaluate"] += self._evaluate_mark.since("s")["s"]
        metrics = super().aggregate_evaluate(server_round, [reply.message for reply in accepted])
        if metrics is not None:
            self._round["client-eval/loss"] = metrics["loss"]
        return metrics

    # ---- what hooks use -------------------------------------------------------------------------

    def address(
        self, partitions: list[int], message_type: str, arrays: ArrayRecord, server_round: int, timeout: float
    ) -> list[Message]:
        """Return one message with the weights for each partition, and count its bytes.

        ``timeout`` (seconds) is how long the answers will be waited for: Flower drops a message after its time
        to live, of 12 hours by default, whatever its sender waits for.
        """
        content = request(arrays, server_round)
        self.accounting.bytes_down += payload_bytes(arrays) * len(partitions)
        node_of, ttl = self.participants.node_of, timeout + _TTL_MARGIN_SECONDS
        return [Message(content, dst_node_id=node_of[p], message_type=message_type, ttl=ttl) for p in partitions]

    def accept(self, replies: Iterable[Message], awaited: list[int], what: str, *, with_weights: bool) -> list[Reply]:
        """Check replies; warn of each one refused or missing; return the good ones by partition id."""
        accepted: dict[int, Reply] = {}
        refused: set[int] = set()
        for message in replies:
            partition = self.participants.partition_of(message)
            if partition is None:
                continue  # its client is named below
            try:
                reply = accept_reply(
                    message,
                    partition,
                    self._reference if with_weights else None,
                    metrics=self.train_metrics if with_weights else self.evaluate_metrics,
                    max_num_examples=self.config.data.max_examples_per_client,
                )
            except ReplyRefusedError as error:
                logger.warning("%s: client %d is left out: %s", what, partition, error)
                refused.add(partition)
            else:
                self.accounting.bytes_up += reply.num_bytes
                accepted[partition] = reply
        for partition in sorted(set(awaited) - set(accepted) - refused):
            logger.warning("%s: client %d is left out: its node is gone or did not answer in time", what, partition)
        return [accepted[partition] for partition in sorted(accepted)]

    def record(self, **stats: object) -> None:
        """Add figures to the current round's line in ``stats.jsonl``."""
        self._round |= stats

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
