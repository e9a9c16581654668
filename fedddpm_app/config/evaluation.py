"""The keys of evaluation, pictures and checkpoints."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import STRICT, CountOrZero, Extractor, PositiveInt, Sampler


@dataclass(frozen=True, config=STRICT)
class EvaluationConfig:
    """The metrics of the global model: a few during the rounds, all at the end."""

    PREFIX: ClassVar[str] = ""
    eval_every: CountOrZero
    eval_draws: PositiveInt
    eval_extractor: Extractor
    eval_reference: Literal["test", "train"]
    eval_images: CountOrZero
    eval_sampler: Sampler
    eval_sampler_steps: PositiveInt
    eval_final_images: CountOrZero
    eval_final_sampler: Sampler
    eval_final_sampler_steps: PositiveInt
    eval_batch_size: PositiveInt
    inception_weights: str
    memorization_neighbours: Annotated[int, Field(ge=2)]
    memorization_rate: Annotated[float, Field(gt=0, lt=1)]
    membership_attack: Literal["none", "threshold", "likelihood-ratio"]

    @property
    def measures_images(self) -> bool:
        """Whether the run generates images for metrics."""
        return self.eval_images > 0 or self.eval_final_images > 0


@dataclass(frozen=True, config=STRICT)
class PreviewConfig:
    """Sheets of images that the global model generates during the rounds."""

    PREFIX: ClassVar[str] = "preview-"
    every: CountOrZero
    images: PositiveInt
    sampler: Sampler
    sampler_steps: PositiveInt


@dataclass(frozen=True, config=STRICT)
class RecordingConfig:
    """The checkpoints of the server's state during the rounds."""

    PREFIX: ClassVar[str] = ""
    checkpoint_every: CountOrZero
    checkpoint_keep: CountOrZero
