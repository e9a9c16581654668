"""The algorithms, one file per paper, and their registry, which imports an algorithm on first use."""

import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from fedddpm_app.config import Config, ConfigError

if TYPE_CHECKING:
    from fedddpm_app.federation.strategy import FederatedStrategy


class Registry(Mapping[str, "type[FederatedStrategy]"]):
    """The strategies by name; the names are known without an import.

    Parameters
    ----------
    places : mapping
        For each name, ``module:Class`` in this package.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> "type[FederatedStrategy]":
        module, _, strategy = self._places[name].partition(":")
        found: type[FederatedStrategy] = getattr(importlib.import_module(f"{__name__}.{module}"), strategy)
        return found

    def __contains__(self, name: object) -> bool:  # that of ``Mapping`` would import the algorithm
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


REGISTRY = Registry(
    {
        "fedddpm": "fedddpm:FedDDPM",
        "fedddpm-plus": "fedddpm_plus:FedDDPMPlus",
        "fedddpm-kd": "fedddpm_kd:FedDDPMKD",
        "fedddpm-late": "fedddpm_late:FedDDPMLate",
        "fedavg": "fedavg:FederatedAveraging",
        "fedprox": "fedprox:FedProx",
        "scaffold": "scaffold:Scaffold",
        "feddyn": "feddyn:FedDyn",
        "fednova": "fednova:FedNova",
        "moon": "moon:Moon",
        "feddiffuse": "feddiffuse:FedDiffuse",
        "fedphd": "fedphd:FedPhD",
        "pdfed": "pdfed:PDFed",
        "centralized": "centralized:Centralized",
        "local-only": "local_only:LocalOnly",
        "aux-only": "aux_only:AuxiliaryOnly",
        "kd-only": "kd_only:DistillationOnly",
        "mixture": "mixture:Mixture",
    }
)


def get_algorithm(config: Config) -> "type[FederatedStrategy]":
    """Return the strategy that the ``algorithm`` key names, after a check of the keys that it uses.

    Raises
    ------
    ConfigError
        If the algorithm is not known, or cannot use the value of a key.
    """
    algorithm = find_algorithm(config.run.algorithm)
    algorithm.check_config(config)
    return algorithm


def find_algorithm(name: str) -> "type[FederatedStrategy]":
    """Return the strategy of a registered name, or of ``"my_module:MyStrategy"``.

    Raises
    ------
    ConfigError
        If the algorithm is not known, or its class cannot be imported or is not a strategy.
    """
    if ":" in name:
        return _import_algorithm(name)
    if name not in REGISTRY:
        raise ConfigError(unknown_algorithm(name))
    return REGISTRY[name]


def unknown_algorithm(name: str) -> str:
    """Return a sentence about a name that is not in the registry and does not name a class."""
    return f'algorithm = "{name}" is not known: use one of {", ".join(REGISTRY)}, or "my_module:MyStrategy".'


def _import_algorithm(name: str) -> "type[FederatedStrategy]":
    """Import a strategy from outside this package, ``module:Class``."""
    from fedddpm_app.federation.strategy import FederatedStrategy

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
