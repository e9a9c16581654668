"""The keys of local training."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import STRICT, CountOrZero, Decay, FloatOrZero, LearningRateSchedule, PositiveFloat


@dataclass(frozen=True, config=STRICT)
class TrainingConfig:
    """A client's optimisation in a round; pretraining shares several of these keys."""

    PREFIX: ClassVar[str] = ""
    local_steps: CountOrZero
    local_epochs: CountOrZero
    batch_size: CountOrZero
    optimizer: Literal["adamw", "adam", "sgd"]
    momentum: Decay
    learning_rate: PositiveFloat
    learning_rate_schedule: LearningRateSchedule
    warmup_steps: CountOrZero
    weight_decay: FloatOrZero
    gradient_clip: FloatOrZero
    ema_decay: Decay
    server_ema_decay: Decay

    def steps_for(self, num_examples: int) -> int:
        """Return the optimiser steps of one round on ``num_examples`` images."""
        batch_size = self.batch_size or num_examples
        return self.local_steps or -(-self.local_epochs * num_examples // batch_size)

    @property
    def is_plain_sgd(self) -> bool:
        """Whether a step is ``w - learning_rate * gradient``, for a loss that may include weight decay."""
        return self.optimizer == "sgd" and self.momentum == 0 and self.gradient_clip == 0
