"""The keys of secure aggregation: the server gets the sum of the clients' updates and no single one."""

import math
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import STRICT, PositiveFloat

_LEAST = 2  # a sum of one update is that update

MoreThanHalf = Annotated[
    float, Field(gt=0.5, le=1, description="it should be above 0.5, so that two halves cannot unmask apart, and <= 1.0")
]


@dataclass(frozen=True, config=STRICT)
class SecureConfig:
    """Whether the updates of a round are masked, in what range they are, and how many clients unmask their sum."""

    PREFIX: ClassVar[str] = "secure-"
    aggregation: bool
    clip: PositiveFloat
    threshold: MoreThanHalf

    def needed(self, num_clients: int) -> int:
        """Return how many of ``num_clients`` clients with shares must answer, at least two."""
        return max(_LEAST, math.ceil(self.threshold * num_clients - 1e-9))
