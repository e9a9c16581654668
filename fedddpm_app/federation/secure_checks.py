"""What secure aggregation cannot be combined with, and what it does not hide."""

from collections.abc import Container
from typing import TYPE_CHECKING

from fedddpm_app.config import Config, ConfigError

if TYPE_CHECKING:
    from fedddpm_app.federation.description import AlgorithmDescription

_OF_THE_MEAN = ("fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad")
_READS_REPLIES = ("aggregate", "check_reply", "exchanged")


def check_secure(algorithm: "type[AlgorithmDescription]", config: Config) -> None:
    """Raise ``ConfigError`` if the server step of a run needs more than the weighted mean of the clients' weights."""
    if not config.secure.aggregation:
        return
    name, off = config.run.algorithm, "or secure-aggregation = false"
    if algorithm.own_aggregation:
        raise ConfigError(
            f'secure-aggregation = true gives the server the mean of a round alone, but algorithm = "{name}": '
            f'{algorithm.own_aggregation}; use "fedavg", "fedprox", "moon" or "fedddpm", {off}.'
        )
    if config.run.aggregator not in _OF_THE_MEAN:
        raise ConfigError(
            f'aggregator = "{config.run.aggregator}" compares the clients\' weights with each other, which '
            f'secure-aggregation = true hides: use aggregator = "fedavg" or another one of the mean, {off}.'
        )
    if changed := [method for method in _READS_REPLIES if _overrides(algorithm, method)]:
        raise ConfigError(
            f'algorithm = "{name}" overrides {changed[0]}, which reads or chooses the weights of single clients, and '
            f"secure-aggregation = true hides them: do its work in after_aggregation, {off}."
        )


def note_on_models(algorithm: "type[AlgorithmDescription]", config: Config, unused: Container[str]) -> list[str]:
    """Return a note if clients send models of their own, which no mask hides; ``unused``: keys without effect."""
    sends = "pretrain" in algorithm.client_actions and "pretrain-steps" not in unused
    if not (config.secure.aggregation and sends and config.auxiliary.sharing == "models"):
        return []
    return [
        "secure-aggregation = true hides the updates of the rounds, but every client also sends its own pretrained "
        'model to the server: use auxiliary-sharing = "images", so that none leaves a client'
    ]


def _overrides(algorithm: "type[AlgorithmDescription]", method: str) -> bool:
    """Return whether a class between an algorithm and the base strategy defines a method."""
    from fedddpm_app.federation.strategy import FederatedStrategy

    return any(method in vars(base) for base in algorithm.__mro__ if base not in FederatedStrategy.__mro__)
