"""The keys of what a client may share: its own model, or images that this model generated."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import STRICT, PositiveInt

Share = Annotated[float, Field(ge=0, le=1)]


def checks_memorization(check: object, sharing: object, partition: object, epsilon: object) -> bool:
    """Return whether clients check their own models, by ``memorization-check``.

    "auto" depends on ``auxiliary-sharing``, ``partition`` and ``pretrain-dp-epsilon``: privately trained models copy
    nothing, and the check itself reads the images without noise.
    """
    return check == "always" or (check == "auto" and not epsilon and (sharing == "images" or partition == "sites"))


@dataclass(frozen=True, config=STRICT)
class SharingConfig:
    """The check of a client's own model before the model, or images of it, leave the client."""

    PREFIX: ClassVar[str] = ""
    memorization_check: Literal["auto", "always", "never"]
    memorization_extractor: Literal["none", "efficientnet-lite0", "inception-v3"]
    max_memorized_share: Share
    min_images_to_share: PositiveInt
    keep_auxiliary: bool
