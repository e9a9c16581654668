"""Flower's aggregation rules, by their run-config names, and what each needs of a round.

McMahan et al. 2017 (fedavg), Hsu et al. 2019 (fedavgm), Reddi et al. 2021 (fedadam, fedyogi, fedadagrad), Yin et al.
2018 (fedmedian, fedtrimmedavg), Blanchard et al. 2017 (krum, multikrum), El Mhamdi et al. 2018 (bulyan). The
arithmetic is Flower's; here the rules are made, checked, and told each round what weights it started from.

Deviations that are Flower's: FedAdam corrects its learning rate for bias as Adam does, with round + 1 in the exponents,
where Reddi et al. correct nothing; Bulyan takes the best clients of one Krum ranking, where the paper ranks anew after
each choice.
"""

import gc
import itertools
import math
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
)

from fedddpm_app.config import AggregatorName, Config, ConfigError
from fedddpm_app.federation.records import ARRAYS, to_arrays, to_weights
from fedddpm_app.federation.replies import Reply
from fedddpm_app.weights import Weights, select, weighted_mean

_STEPPING = ("fedavgm", "fedadam", "fedyogi", "fedadagrad")
_CHOOSING = ("krum", "multikrum", "bulyan")


def create_rule(config: Config) -> FedAvg:
    """Create the rule of the ``aggregator`` key."""
    settings = config.aggregator
    adaptive: dict[str, Any] = {"tau": settings.tau} | (
        {"eta": settings.learning_rate} if settings.learning_rate else {}
    )
    moments: dict[str, Any] = {"beta_1": settings.momentum, "beta_2": settings.beta_2}
    robust: dict[str, Any] = {"num_malicious_nodes": settings.malicious}
    makers: dict[AggregatorName, Callable[[], FedAvg]] = {
        "fedavg": FedAvg,
        "fedavgm": lambda: FedAvgM(
            server_learning_rate=settings.learning_rate or 1.0, server_momentum=settings.momentum
        ),
        "fedadam": lambda: FedAdam(**adaptive, **moments),
        "fedyogi": lambda: FedYogi(**adaptive, **moments),
        "fedadagrad": lambda: FedAdagrad(**adaptive),
        "fedmedian": FedMedian,
        "fedtrimmedavg": lambda: FedTrimmedAvg(beta=settings.trim),
        "krum": lambda: Krum(**robust),
        "multikrum": lambda: MultiKrum(**robust, num_nodes_to_select=settings.selected),
        "bulyan": lambda: Bulyan(**robust),
    }
    return makers[config.run.aggregator]()


class AggregationRule:
    """The rule of the ``aggregator`` key, which keeps its momenta over rounds.

    Weights that have no gradient, such as running means, are averaged by examples where the rule steps by momenta;
    whole numbers are under every rule but ``fedavg`` itself. The rules that choose clients by distances get them in
    float64: Flower takes ``|x|^2 + |y|^2 - 2 x.y``, of which float32 leaves nothing where clients are close.

    Parameters
    ----------
    config : Config
        The run's config.

    Attributes
    ----------
    name : str
        Of the key.
    least_replies : int
        How many it needs to keep its promise.
    steps : bool
        Whether it steps from the global weights by momenta.
    """

    def __init__(self, config: Config) -> None:
        self.name = config.run.aggregator
        self.least_replies = least_replies(config)
        self.steps = self.name in _STEPPING
        self._rule = create_rule(config)
        self._rule.fraction_train = 0.0  # its configure_train takes the arrays in and addresses nobody

    def aggregate(
        self, server_round: int, start: ArrayRecord, replies: Sequence[Reply], parameters: Container[str], grid: Grid
    ) -> Weights:
        """Aggregate a round's replies.

        Parameters
        ----------
        server_round : int
            From 1.
        start : ArrayRecord
            What the round started from. Rules that step from it are told it each round, since a correction may have
            changed what they returned.
        replies : sequence of Reply
            At least ``least_replies``.
        parameters : container of str
            The names of the weights that training changes by gradients; asked for where ``steps``.
        grid : Grid
            Is not used.
        """
        rest: Weights = {}
        if self.name != "fedavg":
            like = replies[0].references[ARRAYS]
            names = [n for n, t in like.items() if (n in parameters if self.steps else t.is_floating_point())]
            others = [name for name in like if name not in names]
            if others:
                rest = weighted_mean((select(reply.load(), others), reply.num_examples) for reply in replies)
            if others or self.name in _CHOOSING:
                start = to_arrays(self._part(to_weights(start), names))
                for reply in replies:
                    reply.message.content[ARRAYS] = to_arrays(self._part(reply.load(), names))
        if hasattr(self._rule, "current_arrays"):
            self._rule.current_arrays = None
        self._rule.configure_train(server_round, start, ConfigRecord(), grid)
        with _few_tracked_objects():
            arrays, _ = self._rule.aggregate_train(server_round, [reply.message for reply in replies])
        if arrays is None:
            raise RuntimeError(f'aggregator = "{self.name}" gave nothing for {len(replies)} replies.')
        return to_weights(arrays) | rest

    def _part(self, weights: Weights, names: list[str]) -> Weights:
        part = select(weights, names)
        return {name: tensor.double() for name, tensor in part.items()} if self.name in _CHOOSING else part


@contextmanager
def _few_tracked_objects() -> Iterator[None]:
    """Keep what exists out of garbage collections in the body: Flower's Bulyan has one of 0.2 s for every client."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def least_replies(config: Config) -> int:
    """Return how many replies the rule needs to keep its promise."""
    settings = config.aggregator
    malicious = settings.malicious
    match config.run.aggregator:
        case "krum":
            return 2 * malicious + 3
        case "multikrum":  # so that none of those averaged need be malicious
            return max(2 * malicious + 3, settings.selected + malicious)
        case "bulyan":
            return 4 * malicious + 3
        case "fedtrimmedavg" if settings.trim:  # so that one is cut off at each end
            return next(count for count in itertools.count(1) if int(settings.trim * count))
        case _:
            return 1


def check_rule(config: Config) -> None:
    """Raise ``ConfigError`` where the rule cannot work with a round's number of clients."""
    name, settings = config.run.aggregator, config.aggregator
    count = config.run.clients_per_round or config.data.num_clients
    least = least_replies(config)
    if name == "multikrum" and settings.selected > count - settings.malicious:
        raise ConfigError(
            f"aggregator-selected = {settings.selected} is more than the {count - settings.malicious} clients that "
            f"are not malicious: use at most {count - settings.malicious}."
        )
    if name == "fedtrimmedavg" and int(settings.trim * count) == 0:
        raise ConfigError(
            f"aggregator-trim = {settings.trim} of {count} clients cuts off 0: use at least "
            f"{math.ceil(100 / count) / 100}."
            if count > 2
            else f'aggregator = "fedtrimmedavg" needs 3 clients per round or more, and a round has {count}.'
        )
    if count < least:
        raise ConfigError(
            f'aggregator = "{name}" with aggregator-malicious = {settings.malicious} needs {least} clients per round, '
            f"and a round has {count}: use more clients, or aggregator-malicious = {_most_malicious(name, count)}."
        )


def _most_malicious(name: str, count: int) -> int | str:
    most = (count - 3) // (4 if name == "bulyan" else 2)
    return most if most >= 0 else "0 and at least 3 clients"
