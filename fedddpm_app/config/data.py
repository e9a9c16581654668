"""The keys of the data."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import STRICT, CountOrZero, PositiveFloat, PositiveInt
from fedddpm_app.limits import CLIENTS, IMAGE_SIDE

MAX_CLASSES = 100_000
PartitionName = Literal[
    "iid",
    "dirichlet",
    "pathological",
    "shards",
    "disjoint-classes",
    "quantity-skew",
    "natural",
    "sites",
]


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """The images, and their partition over the clients.

    ``data.settings.read_auto`` replaces ``"auto"`` by numbers before a config is loaded.
    """

    PREFIX: ClassVar[str] = ""
    dataset: Annotated[str, Field(min_length=1)]
    image_size: Annotated[
        int, Field(ge=1, le=IMAGE_SIDE, description=f'it should be pixels, from 1 to {IMAGE_SIDE}, or "auto"')
    ]
    image_channels: Annotated[Literal[1, 3], Field(description='it should be 1 (grey), 3 (RGB) or "auto"')]
    num_classes: Annotated[
        int, Field(ge=1, le=MAX_CLASSES, description=f'it should be a number from 1 to {MAX_CLASSES}, or "auto"')
    ]
    class_names: Annotated[
        str,
        Field(
            pattern=r"^([^,]+(,[^,]+)*)?$", description='it should be names with commas, such as "cat,dog", or empty'
        ),
    ]
    class_conditional: bool
    class_dropout: Annotated[float, Field(ge=0, lt=1)]
    num_clients: Annotated[int, Field(ge=1, le=CLIENTS)]
    horizontal_flip: bool
    mixed_channels: Literal["error", "convert"]
    max_bad_images: CountOrZero
    cache_dir: str
    partition: PartitionName
    dirichlet_alpha: PositiveFloat
    classes_per_client: PositiveInt
    shards_per_client: PositiveInt
    partition_column: str
    min_partition_size: PositiveInt
    max_examples_per_client: PositiveInt
    held_out_fraction: Annotated[float, Field(ge=0, lt=1)]

    @property
    def classes(self) -> list[str]:
        """``class_names`` as a list, by label; empty if no names are given."""
        return [name.strip() for name in self.class_names.split(",")] if self.class_names else []

    @property
    def null_class(self) -> int | None:
        """The label that stands for no class: the one after all classes; None without ``class_dropout``."""
        return self.num_classes if self.class_conditional and self.class_dropout else None

    @property
    def num_class_embeds(self) -> int | None:
        """The labels that the model knows: the classes and the null class; None for an unconditional model."""
        return self.num_classes + (self.null_class is not None) if self.class_conditional else None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image, in pixels."""
        return self.image_channels, self.image_size, self.image_size
