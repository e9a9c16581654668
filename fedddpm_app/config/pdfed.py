"""The keys of PDFed: peers that score each other's samples, and choose whose model they train on."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import LARGEST_INT, STRICT, CountOrZero

Share = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[float, Field(ge=1, allow_inf_nan=False)]
Samples = Annotated[
    int, Field(ge=2, le=LARGEST_INT, description="it should be a whole number >= 2, as a score compares covariances")
]


@dataclass(frozen=True, config=STRICT)
class PDFedConfig:
    """The peers, their votes, and the order of their work."""

    PREFIX: ClassVar[str] = "pdfed-"
    node: Literal["select", "merge"]
    own_vote: Share
    samples: Samples
    validators: CountOrZero
    clock: Literal["auto", "virtual", "arrival"]
    speed_spread: Spread
    embedder: Literal["pixels-pca", "efficientnet-lite0", "inception-v3"]
    novelty: bool
    dedup: bool
