"""Flower's aggregation rules, by their run-config names, and what each needs of a round.

McMahan et al. 2017 (fedavg), Hsu et al. 2019 (fedavgm), Reddi et al. 2021 (fedadam, fedyogi, fedadagrad), Yin et al.
2018 (fedmedian, fedtrimmedavg), Blanchard et al. 2017 (krum, multikrum), El Mhamdi et al. 2018 (bulyan). The
arithmetic is Flower's; here the rules are made, checked, and told each round what weights it started from.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
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


def apply_rule(
    rule: FedAvg, server_round: int, arrays: ArrayRecord, messages: Sequence[Message], grid: Grid
) -> ArrayRecord | None:
    """Aggregate a round's replies.

    Parameters
    ----------
    rule : FedAvg
        From ``create_rule``; keeps its own momenta over rounds.
    server_round : int
        From 1.
    arrays : ArrayRecord
        What the round started from. Rules that step from it are told it each round, since a correction may have
        changed what they returned.
    messages : sequence of Message
        Checked replies; their arrays may be used up.
    grid : Grid
        Is not used.

    Returns
    -------
    ArrayRecord or None
        None where the rule cannot take so few replies.
    """
    if hasattr(rule, "current_arrays"):
        rule.current_arrays = None
    rule.fraction_train = 0.0  # takes the arrays in and addresses nobody
    rule.configure_train(server_round, arrays, ConfigRecord(), grid)
    return rule.aggregate_train(server_round, messages)[0]


def least_replies(config: Config) -> int:
    """Return how many replies the rule needs to keep its promise."""
    malicious = config.aggregator.malicious
    match config.run.aggregator:
        case "krum" | "multikrum":
            return 2 * malicious + 3
        case "bulyan":
            return 4 * malicious + 3
        case _:
            return 1


def check_rule(config: Config) -> None:
    """Raise ``ConfigError`` where the rule cannot work with a round's number of clients."""
    name, settings = config.run.aggregator, config.aggregator
    count = config.run.clients_per_round or config.data.num_clients
    least = least_replies(config)
    if count < least:
        raise ConfigError(
            f'aggregator = "{name}" with aggregator-malicious = {settings.malicious} needs {least} clients per round, '
            f"and a round has {count}: use more clients, or aggregator-malicious = {_most_malicious(name, count)}."
        )
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


def _most_malicious(name: str, count: int) -> int | str:
    most = (count - 3) // (4 if name == "bulyan" else 2)
    return most if most >= 0 else "0 and at least 3 clients"
