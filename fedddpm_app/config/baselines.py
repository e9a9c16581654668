"""The keys of the baselines: one group for each algorithm, and one line for it in ``Baselines``."""

import dataclasses
from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import STRICT, FloatOrZero, PositiveFloat


@dataclass(frozen=True, config=STRICT)
class FedProxConfig:
    """FedProx's proximal term."""

    PREFIX: ClassVar[str] = "fedprox-"
    mu: FloatOrZero


@dataclass(frozen=True, config=STRICT)
class ScaffoldConfig:
    """SCAFFOLD's control variates and server step."""

    PREFIX: ClassVar[str] = "scaffold-"
    option: Literal["auto", "I", "II"]
    server_learning_rate: PositiveFloat


@dataclass(frozen=True, config=STRICT)
class FedDynConfig:
    """FedDyn's dynamic regulariser."""

    PREFIX: ClassVar[str] = "feddyn-"
    alpha: PositiveFloat


@dataclass(frozen=True, config=STRICT)
class MoonConfig:
    """MOON's contrastive term."""

    PREFIX: ClassVar[str] = "moon-"
    mu: FloatOrZero
    temperature: PositiveFloat
    representation: str


@dataclass(frozen=True, config=STRICT)
class FedDiffuseConfig:
    """FedDiffuse's split of the model, and the collection of the clients' models for evaluation."""

    PREFIX: ClassVar[str] = "feddiffuse-"
    split: Literal["full", "usplit", "ulatdec", "udec"]
    collect_models: bool


@dataclasses.dataclass(frozen=True)
class Baselines:
    """The groups of the baselines; ``Config`` inherits them."""

    fedprox: FedProxConfig
    scaffold: ScaffoldConfig
    feddyn: FedDynConfig
    moon: MoonConfig
    feddiffuse: FedDiffuseConfig
