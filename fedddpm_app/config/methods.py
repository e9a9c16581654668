"""The groups of a run config that belong to one algorithm or to the aggregation rule; see ``groups``."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import (
    STRICT,
    CountOrZero,
    Decay,
    FiniteFloat,
    FloatOrZero,
    LearningRateSchedule,
    PositiveFloat,
    PositiveInt,
    Sampler,
)


@dataclass(frozen=True, config=STRICT)
class PretrainConfig:
    """FedDDPM's phase before the rounds: every client trains a local model."""

    PREFIX: ClassVar[str] = "pretrain-"
    steps: PositiveInt
    learning_rate: PositiveFloat
    learning_rate_schedule: LearningRateSchedule
    timeout: PositiveFloat


@dataclass(frozen=True, config=STRICT)
class AuxiliaryConfig:
    """FedDDPM's auxiliary set D_aux, generated from the pretrained models."""

    PREFIX: ClassVar[str] = "auxiliary-"
    size: PositiveInt
    sampler: Sampler
    sampler_steps: PositiveInt
    batch_size: PositiveInt
    generation: Literal["server", "nodes"]


@dataclass(frozen=True, config=STRICT)
class CorrectionConfig:
    """FedDDPM's server-side optimisation on D_aux; ``steps = 0`` is plain FedAvg."""

    PREFIX: ClassVar[str] = "correction-"
    steps: CountOrZero
    learning_rate: PositiveFloat
    learning_rate_schedule: LearningRateSchedule
    batch_size: CountOrZero
    keep_optimizer: bool


@dataclass(frozen=True, config=STRICT)
class PlusConfig:
    """FedDDPM+'s detector of slow learning."""

    PREFIX: ClassVar[str] = "plus-"
    signal: Literal["train-loss", "probe-loss"]
    window: PositiveInt
    patience: PositiveInt
    threshold: FiniteFloat
    max_corrections: CountOrZero
    probe_images: PositiveInt
    auxiliary: Literal["auto", "lazy", "eager"]


@dataclass(frozen=True, config=STRICT)
class AggregatorConfig:
    """What Flower's aggregation rules take besides the replies."""

    PREFIX: ClassVar[str] = "aggregator-"
    learning_rate: FloatOrZero
    momentum: Decay
    beta_2: Decay
    tau: PositiveFloat
    trim: Annotated[float, Field(ge=0, lt=0.5)]
    malicious: CountOrZero
    selected: PositiveInt


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
