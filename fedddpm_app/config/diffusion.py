"""The keys of the diffusion process."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import STRICT


@dataclass(frozen=True, config=STRICT)
class DiffusionConfig:
    """The forward process, and the prediction type of the model."""

    PREFIX: ClassVar[str] = ""
    diffusion_steps: Annotated[int, Field(ge=2)]
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
    beta_start: Annotated[float, Field(gt=0, lt=1)]
    beta_end: Annotated[float, Field(gt=0, lt=1)]
    prediction_type: Literal["epsilon", "v_prediction", "sample"]
