"""The algorithms, one file per paper, and their registry."""

from dataclasses import dataclass

from fedddpm_app.algorithms.fedavg import FederatedAveraging
from fedddpm_app.algorithms.fedddpm import FedDDPM
from fedddpm_app.config import Config, ConfigError
from fedddpm_app.federation.base import FederatedDiffusion
from fedddpm_app.training import TrainingHook


@dataclass(frozen=True)
class Algorithm:
    """Both halves of an algorithm.

    Attributes
    ----------
    strategy : type of FederatedDiffusion
        The server's half.
    hook : type of TrainingHook
        The client's half: what it changes in local training.
    """

    strategy: type[FederatedDiffusion]
    hook: type[TrainingHook] = TrainingHook


REGISTRY: dict[str, Algorithm] = {
    "fedavg": Algorithm(FederatedAveraging),
    "fedddpm": Algorithm(FedDDPM),
}


def get_algorithm(config: Config) -> Algorithm:
    """Look up the value of the ``algorithm`` key, and check the keys that it uses.

    Raises
    ------
    ConfigError
        Listing the known algorithms, or naming a value that the algorithm cannot use.
    """
    name = config.run.algorithm
    if name not in REGISTRY:
        raise ConfigError(f'algorithm = "{name}" is not known: use one of {", ".join(sorted(REGISTRY))}.')
    algorithm = REGISTRY[name]
    algorithm.strategy.check_config(config)
    return algorithm
