"""The keys of trackers: libraries that show a run's curves."""

from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import STRICT

AUTO, NONE = "auto", "none"
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
_ONE = "|".join(TRACKERS)


@dataclass(frozen=True, config=STRICT)
class TrackingConfig:
    """The trackers that get a run's numbers and pictures."""

    PREFIX: ClassVar[str] = ""
    tracker: Annotated[
        str,
        Field(
            pattern=rf"^({AUTO}|{NONE}|({_ONE})(\s*,\s*({_ONE}))*)$",
            description=f"it should be {AUTO}, {NONE}, {', '.join(TRACKERS)}, or several of these with commas between",
        ),
    ]
    track_client_images: bool

    @property
    def named(self) -> tuple[str, ...]:
        """The trackers that the key names, each once; empty for ``auto`` and ``none``."""
        return tuple(dict.fromkeys(name for name in map(str.strip, self.tracker.split(",")) if name in TRACKERS))
