"""The keys of FedDDPM+: the definition of slow learning."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import STRICT, CountOrZero, FiniteFloat, PositiveInt


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
