"""The keys of the diffusion process."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import STRICT
from fedddpm_app.limits import PIPELINE_NUMBER

MAX_GUIDANCE = 100.0  # published scales are at most some 10


@dataclass(frozen=True, config=STRICT)
class DiffusionConfig:
    """The forward process, the prediction type and the loss of the model, the noise of DDIM, and the guidance."""

    PREFIX: ClassVar[str] = ""
    diffusion_steps: Annotated[int, Field(ge=2, le=PIPELINE_NUMBER)]
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
    beta_start: Annotated[float, Field(gt=0, lt=1)]
    beta_end: Annotated[float, Field(gt=0, lt=1)]
    prediction_type: Literal["epsilon", "v_prediction", "sample"]
    loss: Literal["mse", "huber"]
    loss_weighting: Literal["none", "sigmoid-log-snr"]
    ddim_eta: Annotated[float, Field(ge=0, le=1)]
    guidance_scale: Annotated[float, Field(ge=0, le=MAX_GUIDANCE)]
