"""The keys of Flower's aggregation rules."""

from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import STRICT, CountOrZero, Decay, FloatOrZero, PositiveFloat, PositiveInt


@dataclass(frozen=True, config=STRICT)
class AggregatorConfig:
    """The parameters of Flower's aggregation rules."""

    PREFIX: ClassVar[str] = "aggregator-"
    learning_rate: FloatOrZero
    momentum: Decay
    beta_2: Decay
    tau: PositiveFloat
    trim: Annotated[float, Field(ge=0, lt=0.5)]
    malicious: CountOrZero
    selected: PositiveInt
