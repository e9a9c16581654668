"""The keys of FedDDPM: pretraining, auxiliary set, correction."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import STRICT, CountOrZero, LearningRateSchedule, PositiveFloat, PositiveInt, Sampler


@dataclass(frozen=True, config=STRICT)
class PretrainConfig:
    """FedDDPM's phase before the rounds: every client trains a local model."""

    PREFIX: ClassVar[str] = "pretrain-"
    steps: PositiveInt
    learning_rate: PositiveFloat
    learning_rate_schedule: LearningRateSchedule
    timeout: PositiveFloat


@dataclass(frozen=True, config=STRICT)
class FedDDPMConfig:
    """The weights that pretraining starts from, and those that the rounds start from."""

    PREFIX: ClassVar[str] = ""
    pretrain_from: Literal["initial", "global"]
    init_from_pretrained: bool


@dataclass(frozen=True, config=STRICT)
class AuxiliaryConfig:
    """FedDDPM's auxiliary set D_aux, generated from the pretrained models."""

    PREFIX: ClassVar[str] = "auxiliary-"
    sharing: Literal["models", "images"]
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
