"""Which algorithms and rules need no more of a round than the mean of the clients' weights."""

from typing import TYPE_CHECKING

from fedddpm_app.config import Config, ConfigError

if TYPE_CHECKING:
    from fedddpm_app.federation.description import AlgorithmDescription

_OF_THE_MEAN = ("fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad")
_READS_REPLIES = ("aggregate", "check_reply", "exchanged")


def check_needs_the_mean(algorithm: "type[AlgorithmDescription]", config: Config, given: str, off: str) -> None:
    """Raise ``ConfigError`` if the server step of a run needs more than the mean of the clients' weights.

    Parameters
    ----------
    algorithm : type
        The run's algorithm.
    config : Config
        The run's config.
    given : str
        The key and value that give the server the mean alone.
    off : str
        The value without that.
    """
    name = config.run.algorithm
    if algorithm.own_aggregation:
        raise ConfigError(
            f'{given} leaves the algorithm the mean of a round alone, but algorithm = "{name}": '
            f'{algorithm.own_aggregation}; use "fedavg", "fedprox" or "moon", or {off}.'
        )
    if config.run.aggregator not in _OF_THE_MEAN:
        raise ConfigError(
            f'aggregator = "{config.run.aggregator}" compares the clients\' weights with each other, of which '
            f'{given} leaves the mean alone: use aggregator = "fedavg" or another one of the mean, or {off}.'
        )
    if changed := [method for method in _READS_REPLIES if _overrides(algorithm, method)]:
        raise ConfigError(
            f'algorithm = "{name}" overrides {changed[0]}, which reads or chooses the weights of single clients, of '
            f"which {given} leaves the mean alone: do its work in after_aggregation, or {off}."
        )


def _overrides(algorithm: "type[AlgorithmDescription]", method: str) -> bool:
    """Return whether a class between an algorithm and the base strategy defines a method."""
    from fedddpm_app.federation.strategy import FederatedStrategy

    return any(method in vars(base) for base in algorithm.__mro__ if base not in FederatedStrategy.__mro__)
