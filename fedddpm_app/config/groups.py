"""The groups of a run config: frozen dataclasses, one per concept, that check each value alone.

A key of ``[tool.flwr.app.config]`` is its group's ``PREFIX`` plus its field's name, in kebab case. Those of one
algorithm are in ``methods``.
"""

import json
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedddpm_app.config.evaluation import EvaluationConfig, PreviewConfig
from fedddpm_app.config.fields import (
    INTEGERS,
    STRICT,
    AggregatorName,
    Compile,
    CountOrZero,
    Decay,
    FloatOrZero,
    LearningRateSchedule,
    MemoryFormat,
    PartitionName,
    PositiveFloat,
    PositiveInt,
    Precision,
    Scalar,
)
from fedddpm_app.config.methods import (
    AggregatorConfig,
    AuxiliaryConfig,
    CorrectionConfig,
    FedDynConfig,
    FedProxConfig,
    MoonConfig,
    PlusConfig,
    PretrainConfig,
    ScaffoldConfig,
)
from fedddpm_app.config.transport import TransportConfig

MAX_CLASSES = 100_000


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """What is run, where it is written, and on what it runs."""

    PREFIX: ClassVar[str] = ""
    algorithm: str
    algorithm_options: Annotated[
        str,
        Field(
            pattern=r"^\s*([\w-]+=\S+(\s+|$))*$",
            description='it should be "name=value name=value", for an algorithm of your own, or empty',
        ),
    ]
    aggregator: AggregatorName
    num_rounds: PositiveInt
    clients_per_round: CountOrZero
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    output_dir: Annotated[str, Field(min_length=1)]
    run_name: Annotated[
        str,
        Field(
            pattern=r"^(\w[\w.-]{0,99})?$",
            description='it should be a plain folder name of at most 100 letters, digits, "_", "-" and ".", or empty',
        ),
    ]
    device: Annotated[
        str,
        Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="it should be auto, cpu, mps, cuda or cuda:N"),
    ]
    precision: Precision
    memory_format: MemoryFormat
    compile: Compile
    client_threads: PositiveInt
    server_threads: PositiveInt
    state_dir: str

    @property
    def options(self) -> dict[str, Scalar]:
        """``algorithm_options`` as a mapping; a value that is no number, true or false is a text."""
        pairs = (word.split("=", 1) for word in self.algorithm_options.split())
        return {name: _to_scalar(value) for name, value in pairs}


@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Which images, and how they are split over the clients."""

    PREFIX: ClassVar[str] = ""
    dataset: Annotated[str, Field(min_length=1)]
    image_size: PositiveInt
    image_channels: Literal[1, 3]
    num_classes: Annotated[int, Field(ge=1, le=MAX_CLASSES)]
    class_names: Annotated[
        str,
        Field(
            pattern=r"^([^,]+(,[^,]+)*)?$", description='it should be names with commas, such as "cat,dog", or empty'
        ),
    ]
    class_conditional: bool
    num_clients: PositiveInt
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
        """``class_names`` as a list, by label; empty where none are given."""
        return [name.strip() for name in self.class_names.split(",")] if self.class_names else []


@dataclass(frozen=True, config=STRICT)
class UNetConfig:
    """Shape of the ``UNet2DModel``; the two lists are comma-separated integers."""

    PREFIX: ClassVar[str] = "unet-"
    channels: Annotated[
        str, Field(pattern=rf"^{INTEGERS}$", description='it should be positive integers with commas, such as "16,32"')
    ]
    layers_per_block: PositiveInt
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


@dataclass(frozen=True, config=STRICT)
class DiffusionConfig:
    """The forward process and what the model predicts."""

    PREFIX: ClassVar[str] = ""
    diffusion_steps: Annotated[int, Field(ge=2)]
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
    beta_start: Annotated[float, Field(gt=0, lt=1)]
    beta_end: Annotated[float, Field(gt=0, lt=1)]
    prediction_type: Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True, config=STRICT)
class TrainingConfig:
    """A client's optimisation in a round, and what pretraining shares with it."""

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

    def steps_for(self, num_examples: int) -> int:
        """Return the optimiser steps of one round on ``num_examples`` images."""
        batch_size = self.batch_size or num_examples
        return self.local_steps or -(-self.local_epochs * num_examples // batch_size)

    @property
    def is_plain_sgd(self) -> bool:
        """Whether a step is ``w - learning_rate * gradient``, of a loss that may have weight decay in it."""
        return self.optimizer == "sgd" and self.momentum == 0 and self.gradient_clip == 0


@dataclass(frozen=True, config=STRICT)
class ScheduleConfig:
    """What happens between rounds, and how long the server waits."""

    PREFIX: ClassVar[str] = ""
    init_from_pretrained: bool
    checkpoint_every: CountOrZero
    node_timeout: PositiveFloat
    min_available_nodes: CountOrZero
    round_timeout: PositiveFloat
    min_replies: PositiveInt


@dataclass(frozen=True)
class Config:
    """A whole, checked run config."""

    run: RunConfig
    data: DataConfig
    unet: UNetConfig
    diffusion: DiffusionConfig
    training: TrainingConfig
    pretrain: PretrainConfig
    auxiliary: AuxiliaryConfig
    correction: CorrectionConfig
    plus: PlusConfig
    aggregator: AggregatorConfig
    fedprox: FedProxConfig
    scaffold: ScaffoldConfig
    feddyn: FedDynConfig
    moon: MoonConfig
    preview: PreviewConfig
    evaluation: EvaluationConfig
    schedule: ScheduleConfig
    transport: TransportConfig


def is_due(every: int, server_round: int, num_rounds: int) -> bool:
    """Return whether something done ``every`` rounds (0: only at the end) is due after this round."""
    return server_round == num_rounds or (every > 0 and server_round % every == 0)


def _to_scalar(text: str) -> Scalar:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text
