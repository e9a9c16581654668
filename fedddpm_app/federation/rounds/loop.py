"""The loop over the rounds: Flower's, which has no first round other than 1, and does not repeat a round."""

import itertools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fedddpm_app.federation.errors import TooFewRepliesError
from fedddpm_app.progress import logger

if TYPE_CHECKING:
    from fedddpm_app.federation.strategy import FederatedStrategy

_flower = logging.getLogger("flwr")
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class Rounds:
    """Calls a strategy's methods as Flower's ``Strategy.start`` does, from any round on.

    Parameters
    ----------
    strategy : FederatedStrategy
        The strategy.
    grid : Grid
        Sends the messages; its ``send_and_receive`` may yield the replies as they arrive.
    timeout : float
        Seconds to wait for the replies of a round.
    train_config, evaluate_config : ConfigRecord
        Passed on to the strategy.
    """

    def __init__(
        self,
        strategy: "FederatedStrategy",
        grid: Grid,
        timeout: float,
        train_config: ConfigRecord,
        evaluate_config: ConfigRecord,
    ) -> None:
        self._strategy = strategy
        self._grid = grid
        self._timeout = timeout
        self._train_config = train_config
        self._evaluate_config = evaluate_config

    def run(self, first: int, last: int, arrays: ArrayRecord, finish: EvaluateFn) -> Result:
        """Run the rounds ``first`` to ``last`` from the weights ``arrays``.

        ``finish`` is called after each round, and before round 1 with round 0, with the global weights; it returns the
        server's metrics.
        """
        result = Result()
        result.arrays = arrays
        if first == 1:
            _keep(result.evaluate_metrics_serverapp, 0, finish(0, arrays))
        for server_round in range(first, last + 1):
            _flower.info("[ROUND %d/%d]", server_round, last)
            arrays, metrics = self._train(server_round, arrays)
            result.arrays = arrays
            _keep(result.train_metrics_clientapp, server_round, metrics)
            messages = self._strategy.configure_evaluate(server_round, arrays, self._evaluate_config, self._grid)
            replies = self._grid.send_and_receive(messages, timeout=self._timeout)
            metrics = self._strategy.aggregate_evaluate(server_round, replies)
            _keep(result.evaluate_metrics_clientapp, server_round, metrics)
            _keep(result.evaluate_metrics_serverapp, server_round, finish(server_round, arrays))
        return result

    def _train(self, server_round: int, arrays: ArrayRecord) -> tuple[ArrayRecord, MetricRecord | None]:
        """Train a round; repeat it from the same weights if fewer than ``min-replies`` clients returned a reply."""
        strategy, retries, used = self._strategy, self._strategy.config.waiting.max_round_retries, 0
        free = strategy.config.data.num_clients  # attempts: one that is found out may come back as another node
        for attempt in itertools.count():
            strategy.attempt = attempt
            try:
                messages = strategy.configure_train(server_round, arrays, self._train_config, self._grid)
                replies = self._grid.send_and_receive(messages, timeout=self._timeout)
                aggregated, metrics = strategy.aggregate_train(server_round, replies)
                return arrays if aggregated is None else aggregated, metrics
            except TooFewRepliesError as error:
                strategy.abandon_round(str(error))
                is_free = error.has_excluded and retries > 0 and free > 0  # without retries, no round is repeated
                free -= is_free
                used += not is_free
                if used > retries:
                    raise
                count = "without a client" if is_free else f"{used} of max-round-retries = {retries}"
                logger.warning("round %d is abandoned, and repeated (%s): %s", server_round, count, error)
        raise AssertionError("itertools.count ends")


def _keep(history: dict[int, MetricRecord], server_round: int, metrics: MetricRecord | None) -> None:
    if metrics is not None:
        history[server_round] = metrics
