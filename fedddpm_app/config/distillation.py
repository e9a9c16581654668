"""The keys of our extensions of FedDDPM, in which the global model learns the predictions of the clients' models."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import STRICT, CountOrZero, PositiveInt


@dataclass(frozen=True, config=STRICT)
class KDConfig:
    """The distillation before the rounds."""

    PREFIX: ClassVar[str] = "kd-"
    warmup_steps: CountOrZero


@dataclass(frozen=True, config=STRICT)
class LateConfig:
    """The choice of the teachers after the rounds, and the number of times that this happens."""

    PREFIX: ClassVar[str] = "late-"
    teacher: Literal["vote", "local", "mean"]
    cycles: PositiveInt
