"""The keys of the aggregation rule, which is Flower's."""

from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import STRICT, CountOrZero, Decay, FloatOrZero, PositiveFloat, PositiveInt


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
