"""The keys of the model."""

from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import INTEGERS, STRICT, PositiveInt
from fedddpm_app.limits import PIPELINE_LAYERS


@dataclass(frozen=True, config=STRICT)
class UNetConfig:
    """Shape of the ``UNet2DModel``; the two lists are comma-separated integers."""

    PREFIX: ClassVar[str] = "unet-"
    channels: Annotated[
        str, Field(pattern=rf"^{INTEGERS}$", description='it should be positive integers with commas, such as "16,32"')
    ]
    layers_per_block: Annotated[int, Field(ge=1, le=PIPELINE_LAYERS)]
    attention_resolutions: Annotated[
        str,
        Field(pattern=rf"^({INTEGERS})?$", description='it should be pixels with commas, such as "8,4", or empty'),
    ]
    norm_groups: PositiveInt
    dropout: Annotated[float, Field(ge=0, lt=1)]

    @property
    def block_out_channels(self) -> tuple[int, ...]:
        """Output channels of each resolution level, the finest first."""
        return tuple(int(part) for part in self.channels.split(","))

    @property
    def attention_sizes(self) -> tuple[int, ...]:
        """Feature-map sizes (pixels) that get self-attention."""
        return tuple(int(part) for part in self.attention_resolutions.split(",") if part.strip())
