"""The keys of waiting for clients."""

import math
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import LARGEST_INT, STRICT, CountOrZero, PositiveFloat

Replies = Annotated[
    Annotated[int, Field(ge=1, le=LARGEST_INT)] | Annotated[float, Field(gt=0, le=1)],
    Field(description="it should be a whole number >= 1, or a share of the clients above 0 and up to 1.0"),
]


@dataclass(frozen=True, config=STRICT)
class WaitingConfig:
    """How long the server waits, and for how many nodes and replies."""

    PREFIX: ClassVar[str] = ""
    node_timeout: PositiveFloat
    min_available_nodes: CountOrZero
    round_timeout: PositiveFloat
    min_replies: Replies
    max_round_retries: CountOrZero

    def quorum(self, num_clients: int) -> int:
        """Return the number of good replies that ``min_replies`` requires of ``num_clients`` clients."""
        if isinstance(self.min_replies, int):
            return self.min_replies
        return max(1, math.ceil(self.min_replies * num_clients - 1e-9))
