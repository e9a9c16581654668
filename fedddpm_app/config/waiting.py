"""The keys of waiting for clients."""

from typing import ClassVar

from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import STRICT, CountOrZero, PositiveFloat, PositiveInt


@dataclass(frozen=True, config=STRICT)
class WaitingConfig:
    """How long the server waits, and for how many nodes and replies."""

    PREFIX: ClassVar[str] = ""
    node_timeout: PositiveFloat
    min_available_nodes: CountOrZero
    round_timeout: PositiveFloat
    min_replies: PositiveInt
