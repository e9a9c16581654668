"""The keys of differential privacy at the level of a client: one client more or less in a run."""

from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedddpm_app.config.dp import Budget, Delta
from fedddpm_app.config.fields import STRICT, FloatOrZero, PositiveFloat

Quantile = Annotated[float, Field(ge=0, lt=1, description="it should be at least 0, and below 1")]


@dataclass(frozen=True, config=STRICT)
class ClientDPConfig:
    """The budget of all rounds together, and how the clients' updates are clipped."""

    PREFIX: ClassVar[str] = "client-dp-"
    epsilon: FloatOrZero
    delta: Delta
    clip: PositiveFloat
    quantile: Quantile

    @property
    def budget(self) -> Budget:
        """The budget of all rounds of the run."""
        return Budget(self.epsilon, self.delta)
