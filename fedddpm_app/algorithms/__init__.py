"""The algorithms, one file per paper, and their registry."""

import importlib

from fedddpm_app.algorithms.aux_only import AuxiliaryOnly
from fedddpm_app.algorithms.centralized import Centralized
from fedddpm_app.algorithms.fedavg import FederatedAveraging
from fedddpm_app.algorithms.fedddpm import FedDDPM
from fedddpm_app.algorithms.fedddpm_plus import FedDDPMPlus
from fedddpm_app.algorithms.feddyn import FedDyn
from fedddpm_app.algorithms.fednova import FedNova
from fedddpm_app.algorithms.fedprox import FedProx
from fedddpm_app.algorithms.local_only import LocalOnly
from fedddpm_app.algorithms.moon import Moon
from fedddpm_app.algorithms.scaffold import Scaffold
from fedddpm_app.config import Config, ConfigError
from fedddpm_app.federation.strategy import FederatedStrategy

REGISTRY: dict[str, type[FederatedStrategy]] = {
    "fedddpm": FedDDPM,
    "fedddpm-plus": FedDDPMPlus,
    "fedavg": FederatedAveraging,
    "fedprox": FedProx,
    "scaffold": Scaffold,
    "feddyn": FedDyn,
    "fednova": FedNova,
    "moon": Moon,
    "centralized": Centralized,
    "local-only": LocalOnly,
    "aux-only": AuxiliaryOnly,
}


def get_algorithm(config: Config) -> type[FederatedStrategy]:
    """Return the strategy that the ``algorithm`` key names, after a check of the keys that it uses.

    Raises
    ------
    ConfigError
        If the algorithm is not known, or cannot use the value of a key.
    """
    algorithm = find_algorithm(config.run.algorithm)
    algorithm.check_config(config)
    return algorithm


def find_algorithm(name: str) -> type[FederatedStrategy]:
    """Return the strategy of a registered name, or of ``"my_module:MyStrategy"``.

    Raises
    ------
    ConfigError
        If the algorithm is not known, or its class cannot be imported or is not a strategy.
    """
    algorithm = _import_algorithm(name) if ":" in name else REGISTRY.get(name)
    if algorithm is None:
        raise ConfigError(
            f'algorithm = "{name}" is not known: use one of {", ".join(REGISTRY)}, or "my_module:MyStrategy".'
        )
    return algorithm


def _import_algorithm(name: str) -> type[FederatedStrategy]:
    """Import a strategy from outside this package, ``module:Class``."""
    module_name, _, class_name = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ConfigError(
            f'algorithm = "{name}" cannot be imported ({error}): put the module, as one file, next to pyproject.toml '
            "(`fedddpm new` writes such a folder), or install it, and name a class in it."
        ) from error
    if not (isinstance(found, type) and issubclass(found, FederatedStrategy)):
        raise ConfigError(
            f'algorithm = "{name}" is not a strategy: derive the class from FederatedStrategy or FedDDPM.'
        )
    return found
