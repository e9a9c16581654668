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
    ema_warmup: FloatOrZero

    def steps_for(self, num_examples: int) -> int:
        """Return the optimiser steps of one round on ``num_examples`` images."""
        batch_size = self.batch_size or num_examples
        return self.local_steps or -(-self.local_epochs * num_examples // batch_size)

    def ema_decay_at(self, decay: float, update: int) -> float:
        """Return the decay d_k of an EMA's update k, from 1: E_k = d_k E_(k-1) + (1 - d_k) W_k.

        d_1 = 0: an EMA starts at the first weights, E_1 = W_1, because the weights before them are random. Then d_k is
        ``decay``, with ``ema_warmup`` c > 0 at most (k - 1) / (c + k - 1).
        """
        past = update - 1
        return min(decay, past / (self.ema_warmup + past)) if past else 0.0
