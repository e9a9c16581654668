"""Flower's aggregation rules, by their run-config names, and the replies that each rule needs.

McMahan et al. 2017 (fedavg), Hsu et al. 2019 (fedavgm), Reddi et al. 2021 (fedadam, fedyogi, fedadagrad), Yin et al.
2018 (fedmedian, fedtrimmedavg), Blanchard et al. 2017 (krum, multikrum), El Mhamdi et al. 2018 (bulyan). The
arithmetic is Flower's; this module creates the rules, checks them, and passes them the weights that each round started
from.

Deviations that come from Flower: FedAdam corrects its learning rate for bias as Adam does, with round + 1 in the
exponents, whereas Reddi et al. do not correct it; Bulyan takes the best clients of one Krum ranking, whereas the paper
ranks again after each choice.
"""

import gc
import itertools
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
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
from fedddpm_app.federation.messages.records import ARRAYS, METRICS, NUM_EXAMPLES, to_arrays, to_weights
from fedddpm_app.federation.messages.replies import Reply
from fedddpm_app.progress import logger
from fedddpm_app.weights import Weights, num_bytes, select, weighted_mean

_STEPPING = ("fedavgm", "fedadam", "fedyogi", "fedadagrad")
_CHOOSING = ("krum", "multikrum", "bulyan")
_MOMENTA = ("momentum_vector", "m_t", "v_t")
_NO_NODE = 1


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

    ``fedavg`` and the rules that step by momenta from the mean fold each reply as it arrives. The rules that compare
    clients, number by number (``fedmedian``, ``fedtrimmedavg``) or as a whole (``krum``, ``multikrum``, ``bulyan``),
    hold all replies of a round, and log how much memory that takes. Weights that have no gradient, such as running
    means, are averaged by examples if the rule steps by momenta. Whole numbers are averaged by examples under every
    rule. The rules that choose clients by distances receive the weights in float64: Flower computes
    ``|x|^2 + |y|^2 - 2 x.y``, which has no correct digit left in float32 if clients are close.

    Parameters
    ----------
    config : Config
        The run's config.

    Attributes
    ----------
    name : str
        The value of the key.
    least_replies : int
        The number of replies that its guarantee needs.
    steps : bool
        Whether it steps from the global weights by momenta.
    """

    def __init__(self, config: Config) -> None:
        self.name = config.run.aggregator
        self.least_replies = least_replies(config)
        self.steps = self.name in _STEPPING
        self._rule = create_rule(config)
        self._rule.fraction_train = 0.0  # its configure_train stores the arrays and makes no messages

    def aggregate(
        self, server_round: int, start: Weights, replies: Iterable[Reply], parameters: Container[str], grid: Grid
    ) -> Weights | None:
        """Aggregate a round's replies; return None if there are fewer than ``least_replies``.

        Parameters
        ----------
        server_round : int
            From 1.
        start : Weights
            The weights that the round started from. Rules that step from them receive them in each round, because a
            correction may have changed the rule's last result.
        replies : iterable of Reply
            At least one.
        parameters : container of str
            The names of the weights that training changes by gradients; used if ``steps``.
        grid : Grid
            Not used.
        """
        if self.name == "fedavg" or self.steps:
            mean = weighted_mean((reply.load(), reply.num_examples) for reply in replies)
            return mean if self.name == "fedavg" else self._step(server_round, start, mean, parameters, grid)
        held = list(replies)
        if len(held) < self.least_replies:
            text = "round %d: %s needs %d replies, but %d arrived: the global weights stay unchanged"
            logger.warning(text, server_round, self.name, self.least_replies, len(held))
            return None
        return self._compare(server_round, start, held, grid)

    def state_dict(self) -> dict[str, object]:
        """Return the momenta, for a checkpoint; empty for a rule without them."""
        return {name: getattr(self._rule, name) for name in _MOMENTA if getattr(self._rule, name, None) is not None}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue with the momenta of a checkpoint."""
        for name, momentum in state.items():
            setattr(self._rule, name, momentum)

    def log_memory(self, weights: Weights, num_replies: int) -> None:
        """Log the memory that a round's replies take, if the rule holds them all."""
        if self.name != "fedavg" and not self.steps:
            factor = 3 if self.name in _CHOOSING else 1  # as received, and in float64
            text = 'aggregator = "%s" holds all %d replies of a round: about %.0f MB of the server\'s memory'
            logger.info(text, self.name, num_replies, factor * num_replies * num_bytes(weights) / 1e6)

    def _step(
        self, server_round: int, start: Weights, mean: Weights, parameters: Container[str], grid: Grid
    ) -> Weights:
        """Step towards the clients' mean, which the rule receives as its only reply."""
        names = [name for name in mean if name in parameters]
        content = RecordDict({ARRAYS: to_arrays(select(mean, names)), METRICS: MetricRecord({NUM_EXAMPLES: 1})})
        reply = Message(content, dst_node_id=_NO_NODE, message_type="train")
        return mean | self._by_flower(server_round, select(start, names), [reply], grid)

    def _compare(self, server_round: int, start: Weights, replies: Sequence[Reply], grid: Grid) -> Weights:
        models = [reply.load() for reply in replies]
        names = [name for name, tensor in models[0].items() if tensor.is_floating_point()]
        others = [name for name in models[0] if name not in names]
        rest = (
            weighted_mean((select(w, others), reply.num_examples) for w, reply in zip(models, replies, strict=True))
            if others
            else {}
        )
        for reply, weights in zip(replies, models, strict=True):
            reply.message.content[ARRAYS] = ArrayRecord(dict(self._part(weights, names)))  # some rules use it up
        messages = [reply.message for reply in replies]
        return self._by_flower(server_round, self._part(start, names), messages, grid) | rest

    def _by_flower(self, server_round: int, start: Weights, replies: list[Message], grid: Grid) -> Weights:
        if hasattr(self._rule, "current_arrays"):
            self._rule.current_arrays = None
        self._rule.configure_train(server_round, to_arrays(start), ConfigRecord(), grid)
        with _few_tracked_objects():
            arrays, _ = self._rule.aggregate_train(server_round, replies)
        if arrays is None:
            raise RuntimeError(f'aggregator = "{self.name}" returned no weights for {len(replies)} replies.')
        return to_weights(arrays)

    def _part(self, weights: Weights, names: list[str]) -> Weights:
        part = select(weights, names)
        return {name: tensor.double() for name, tensor in part.items()} if self.name in _CHOOSING else part


@contextmanager
def _few_tracked_objects() -> Iterator[None]:
    """Keep existing objects out of garbage collection: Flower's Bulyan starts one of 0.2 s for every client."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def least_replies(config: Config) -> int:
    """Return the number of replies that the rule's guarantee needs."""
    settings = config.aggregator
    malicious = settings.malicious
    match config.run.aggregator:
        case "krum":
            return 2 * malicious + 3
        case "multikrum":  # so that none of the averaged clients needs to be malicious
            return max(2 * malicious + 3, settings.selected + malicious)
        case "bulyan":
            return 4 * malicious + 3
        case "fedtrimmedavg" if settings.trim:  # so that one reply is cut off at each end
            return next(count for count in itertools.count(1) if int(settings.trim * count))
        case _:
            return 1


def check_rule(config: Config) -> None:
    """Raise ``ConfigError`` if the rule cannot work with the number of clients per round."""
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
            else f'aggregator = "fedtrimmedavg" needs at least 3 clients per round, but a round has {count}.'
        )
    if count < least:
        raise ConfigError(
            f'aggregator = "{name}" with aggregator-malicious = {settings.malicious} needs {least} clients per round, '
            f"but a round has {count}: use more clients, or aggregator-malicious = {_most_malicious(name, count)}."
        )


def _most_malicious(name: str, count: int) -> int | str:
    most = (count - 3) // (4 if name == "bulyan" else 2)
    return most if most >= 0 else "0 and at least 3 clients"
