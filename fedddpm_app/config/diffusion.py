"""The keys of the diffusion process."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import STRICT
from fedddpm_app.limits import PIPELINE_NUMBER


@dataclass(frozen=True, config=STRICT)
class DiffusionConfig:
    """The forward process, the prediction type and the loss of the model, and the noise that DDIM adds."""

    PREFIX: ClassVar[str] = ""
    diffusion_steps: Annotated[int, Field(ge=2, le=PIPELINE_NUMBER)]
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
    beta_start: Annotated[float, Field(gt=0, lt=1)]
    beta_end: Annotated[float, Field(gt=0, lt=1)]
    prediction_type: Literal["epsilon", "v_prediction", "sample"]
    loss: Literal["mse", "huber"]
    loss_weighting: Literal["none", "sigmoid-log-snr"]
    ddim_eta: Annotated[float, Field(ge=0, le=1)]
