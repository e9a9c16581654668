"""The keys of differential privacy at the level of an example."""

from dataclasses import dataclass as plain
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import STRICT, FloatOrZero, PositiveFloat, PositiveInt

PrivatePhase = Literal["pretrain", "train"]
Delta = Annotated[float, Field(gt=0, lt=1, description="it should be a number between 0 and 1, below 1 / n_i")]


@plain(frozen=True)
class Budget:
    """The most that a phase may spend of each client's privacy: (epsilon, delta); ``epsilon`` = 0 is no limit."""

    epsilon: float
    delta: float

    @property
    def is_private(self) -> bool:
        """Whether the phase has a guarantee."""
        return self.epsilon > 0


@dataclass(frozen=True, config=STRICT)
class DPConfig:
    """Budgets of the two phases in which clients train, and the mechanism of both."""

    PREFIX: ClassVar[str] = ""
    pretrain_dp_epsilon: FloatOrZero
    pretrain_dp_delta: Delta
    train_dp_epsilon: FloatOrZero
    train_dp_delta: Delta
    dp_clip: PositiveFloat
    dp_noise_multiplicity: PositiveInt
    dp_secret_noise: bool

    @property
    def pretrain(self) -> Budget:
        """The budget of a client's pretraining."""
        return Budget(self.pretrain_dp_epsilon, self.pretrain_dp_delta)

    @property
    def train(self) -> Budget:
        """The budget of all local rounds of a client together."""
        return Budget(self.train_dp_epsilon, self.train_dp_delta)

    @property
    def is_on(self) -> bool:
        """Whether any phase has a guarantee."""
        return self.pretrain.is_private or self.train.is_private

    def of(self, phase: PrivatePhase) -> Budget:
        """Return the budget of a phase."""
        return self.pretrain if phase == "pretrain" else self.train

    def draws(self, phase: PrivatePhase) -> int:
        """Return how often an image goes through the model in a step of a phase: more than once in private ones."""
        return self.dp_noise_multiplicity if self.of(phase).is_private else 1
