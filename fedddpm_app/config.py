"""The run config: the only place that reads it, and where every key is checked.

A run config is what Flower hands to the apps: a flat ``{"kebab-key": scalar}`` mapping, the defaults of
``[tool.flwr.app.config]`` in pyproject.toml with the ``--run-config`` overrides put in. ``load_config``
turns it into frozen dataclasses, one per concept; a key is its group's prefix plus its field's name.
"""

import difflib
import types
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

Scalar = bool | int | float | str
Sampler = Literal["ddpm", "ddim", "dpm-solver++"]
Precision = Literal["fp32", "bf16"]
LearningRateSchedule = Literal["constant", "cosine"]

PositiveInt = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FloatOrZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]

_STRICT = ConfigDict(strict=True, extra="forbid")


class ConfigError(ValueError):
    """A run config that cannot be run; the message names the key, its value and the fix."""


@dataclass(frozen=True, config=_STRICT)
class RunConfig:
    """What is run, where it is written, and on what it runs."""

    PREFIX: ClassVar[str] = ""
    algorithm: str
    num_rounds: PositiveInt
    clients_per_round: CountOrZero
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    output_dir: Annotated[str, Field(min_length=1)]
    run_name: Annotated[str, Field(pattern=r"^[\w.-]*$")]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
    precision: Precision
    client_threads: PositiveInt
    server_threads: PositiveInt


@dataclass(frozen=True, config=_STRICT)
class DataConfig:
    """Which images, and how they are split over the clients."""

    PREFIX: ClassVar[str] = ""
    dataset: Annotated[str, Field(min_length=1)]
    image_size: PositiveInt
    image_channels: Literal[1, 3]
    num_classes: PositiveInt
    class_conditional: bool
    num_clients: PositiveInt
    partition: Literal["iid", "dirichlet", "pathological", "disjoint-classes"]
    dirichlet_alpha: PositiveFloat
    classes_per_client: PositiveInt
    min_partition_size: PositiveInt
    held_out_fraction: Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=_STRICT)
class UNetConfig:
    """Shape of the ``UNet2DModel``; the two lists are comma-separated integers."""

    PREFIX: ClassVar[str] = "unet-"
    channels: Annotated[str, Field(pattern=r"^\s*\d+\s*(,\s*\d+\s*)*$")]
    layers_per_block: PositiveInt
    attention_resolutions: Annotated[str, Field(pattern=r"^(\s*\d+\s*(,\s*\d+\s*)*)?$")]
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


@dataclass(frozen=True, config=_STRICT)
class DiffusionConfig:
    """The forward process and what the model predicts."""

    PREFIX: ClassVar[str] = ""
    diffusion_steps: Annotated[int, Field(ge=2)]
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]
    beta_start: Annotated[float, Field(gt=0, lt=1)]
    beta_end: Annotated[float, Field(gt=0, lt=1)]
    prediction_type: Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True, config=_STRICT)
class TrainingConfig:
    """A client's optimisation in a round, and what pretraining shares with it."""

    PREFIX: ClassVar[str] = ""
    local_steps: CountOrZero
    local_epochs: CountOrZero
    batch_size: PositiveInt
    optimizer: Literal["adamw", "adam", "sgd"]
    learning_rate: PositiveFloat
    learning_rate_schedule: LearningRateSchedule
    warmup_steps: CountOrZero
    weight_decay: FloatOrZero
    gradient_clip: FloatOrZero
    ema_decay: Decay
    server_ema_decay: Decay

    def steps_for(self, num_examples: int) -> int:
        """Return the optimiser steps of one round on ``num_examples`` images."""
        return self.local_steps or -(-self.local_epochs * num_examples // self.batch_size)


@dataclass(frozen=True, config=_STRICT)
class PretrainConfig:
    """FedDDPM's phase before the rounds: every client trains a local model."""

    PREFIX: ClassVar[str] = "pretrain-"
    steps: PositiveInt
    learning_rate: PositiveFloat
    learning_rate_schedule: LearningRateSchedule
    timeout: PositiveFloat


@dataclass(frozen=True, config=_STRICT)
class AuxiliaryConfig:
    """FedDDPM's auxiliary set D_aux, generated from the pretrained models."""

    PREFIX: ClassVar[str] = "auxiliary-"
    size: PositiveInt
    sampler: Sampler
    sampler_steps: PositiveInt
    batch_size: PositiveInt


@dataclass(frozen=True, config=_STRICT)
class CorrectionConfig:
    """FedDDPM's server-side optimisation on D_aux; ``steps = 0`` is plain FedAvg."""

    PREFIX: ClassVar[str] = "correction-"
    steps: CountOrZero
    learning_rate: PositiveFloat
    learning_rate_schedule: LearningRateSchedule
    batch_size: PositiveInt
    keep_optimizer: bool


@dataclass(frozen=True, config=_STRICT)
class PreviewConfig:
    """Sample sheets drawn from the global model while it trains."""

    PREFIX: ClassVar[str] = "preview-"
    every: CountOrZero
    images: PositiveInt
    sampler: Sampler
    sampler_steps: PositiveInt


@dataclass(frozen=True, config=_STRICT)
class ScheduleConfig:
    """What happens between rounds, and how long the server waits."""

    PREFIX: ClassVar[str] = ""
    init_from_pretrained: bool
    evaluate_every: CountOrZero
    evaluate_draws: PositiveInt
    checkpoint_every: CountOrZero
    node_timeout: PositiveFloat
    round_timeout: PositiveFloat


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
    preview: PreviewConfig
    schedule: ScheduleConfig


def is_due(every: int, server_round: int, num_rounds: int) -> bool:
    """Return whether something done ``every`` rounds (0: only at the end) is due after this round."""
    return server_round == num_rounds or (every > 0 and server_round % every == 0)


def _keys(group: type) -> dict[str, str]:
    """Map each run-config key of a group to its field's name."""
    prefix: str = group.PREFIX  # type: ignore[attr-defined]
    return {prefix + f.name.replace("_", "-"): f.name for f in fields(group)}


_GROUPS: Mapping[str, type] = types.MappingProxyType(
    {f.name: f.type for f in fields(Config) if isinstance(f.type, type)}
)


def known_keys() -> list[str]:
    """Return every run-config key, in the order of the groups."""
    return [key for group in _GROUPS.values() for key in _keys(group)]


def load_config(run_config: Mapping[str, Scalar]) -> Config:
    """Check a run config and turn it into dataclasses.

    Parameters
    ----------
    run_config : Mapping[str, bool | int | float | str]
        All keys of ``[tool.flwr.app.config]``, overrides put in.

    Raises
    ------
    ConfigError
        Naming the first bad key, its value and the fix.
    """
    known = known_keys()
    for key in run_config:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            fix = f"did you mean {close[0]}?" if close else "[tool.flwr.app.config] in pyproject.toml lists all."
            raise ConfigError(f"{key} = {run_config[key]!r}: there is no such key; {fix}")
    for key in known:
        if key not in run_config:
            raise ConfigError(f"{key} is missing: add it to [tool.flwr.app.config] in pyproject.toml.")
    groups: dict[str, Any] = {name: _load_group(group, run_config) for name, group in _GROUPS.items()}
    config = Config(**groups)
    check_together(config)
    return config


def _load_group(group: type, run_config: Mapping[str, Scalar]) -> object:
    names = _keys(group)
    try:
        loaded: object = group(**{name: run_config[key] for key, name in names.items()})
    except ValidationError as error:
        first = error.errors()[0]
        key = next(key for key, name in names.items() if name == first["loc"][0])
        message = first["msg"].replace("Input should", "it should")
        raise ConfigError(f"{key} = {run_config[key]!r} cannot be used: {message}.") from None
    return loaded


def check_together(config: Config) -> None:
    """Raise ``ConfigError`` where values that are fine alone do not fit together."""
    _check_unet(config)
    steps = config.diffusion.diffusion_steps
    for key, value in (
        ("auxiliary-sampler-steps", config.auxiliary.sampler_steps),
        ("preview-sampler-steps", config.preview.sampler_steps),
    ):
        if value > steps:
            raise ConfigError(
                f"{key} = {value} is more than diffusion-steps = {steps}: use at most {steps} sampler steps."
            )
    if config.diffusion.beta_start >= config.diffusion.beta_end:
        raise ConfigError(
            f"beta-start = {config.diffusion.beta_start} is not below beta-end = {config.diffusion.beta_end}: "
            "noise must grow with t; the usual values are 0.0001 and 0.02."
        )
    if (config.training.local_steps > 0) == (config.training.local_epochs > 0):
        raise ConfigError(
            f"local-steps = {config.training.local_steps} and local-epochs = {config.training.local_epochs}: "
            "set exactly one of them, the other to 0."
        )
    if config.run.clients_per_round > config.data.num_clients:
        raise ConfigError(
            f"clients-per-round = {config.run.clients_per_round} is more than num-clients = "
            f"{config.data.num_clients}: use at most {config.data.num_clients}, or 0 for all."
        )
    if config.data.classes_per_client > config.data.num_classes:
        raise ConfigError(
            f"classes-per-client = {config.data.classes_per_client} is more than num-classes = "
            f"{config.data.num_classes}: use at most {config.data.num_classes}."
        )


def _check_unet(config: Config) -> None:
    size, unet = config.data.image_size, config.unet
    halvings = len(unet.block_out_channels) - 1
    if size % 2**halvings or size >> halvings < 2:
        fits = max(2, round(size / 2**halvings)) * 2**halvings
        raise ConfigError(
            f"image-size = {size} cannot be halved {halvings} times down to 2 pixels or more, as unet-channels = "
            f'"{unet.channels}" needs: use image-size = {fits} or fewer channel levels.'
        )
    sizes = [size >> level for level in range(halvings + 1)]
    for resolution in unet.attention_sizes:
        if resolution not in sizes:
            raise ConfigError(
                f'unet-attention-resolutions = "{unet.attention_resolutions}": the feature maps are '
                f"{', '.join(map(str, sizes))} pixels wide; use some of these, or an empty text for none."
            )
    for channels in unet.block_out_channels:
        if channels == 0 or channels % unet.norm_groups:
            raise ConfigError(
                f"unet-norm-groups = {unet.norm_groups} does not divide {channels} of unet-channels = "
                f'"{unet.channels}": make every channel count a multiple of it.'
            )
