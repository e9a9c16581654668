"""Which algorithms and rules need no more of a round than the mean of the clients' weights."""

from typing import TYPE_CHECKING

from fedddpm_app.config import Config, ConfigError

if TYPE_CHECKING:
    from fedddpm_app.federation.description import AlgorithmDescription

_OF_THE_MEAN = ("fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad")


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
    if method := algorithm.reads_single_replies():
        raise ConfigError(
            f'algorithm = "{name}" overrides {method}, which reads or chooses the weights of single clients, of '
            f"which {given} leaves the mean alone: do its work in after_aggregation, or {off}."
        )
