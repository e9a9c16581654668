"""The run config: the only place that reads it, and where every key is checked.

A run config is what Flower hands to the apps: a flat ``{"kebab-key": scalar}`` mapping, the defaults of
``[tool.flwr.app.config]`` in pyproject.toml with the ``--run-config`` overrides put in. ``load_config``
turns it into frozen dataclasses (``groups``) and checks what must fit together (``checks``).
"""

from fedddpm_app.config.checks import check_sampler, check_warmup
from fedddpm_app.config.errors import ConfigError
from fedddpm_app.config.groups import (
    AuxiliaryConfig,
    Config,
    CorrectionConfig,
    DataConfig,
    DiffusionConfig,
    LearningRateSchedule,
    Precision,
    PretrainConfig,
    PreviewConfig,
    RunConfig,
    Sampler,
    Scalar,
    ScheduleConfig,
    TrainingConfig,
    UNetConfig,
    is_due,
)
from fedddpm_app.config.loading import known_keys, load_config

__all__ = [
    "AuxiliaryConfig",
    "Config",
    "ConfigError",
    "CorrectionConfig",
    "DataConfig",
    "DiffusionConfig",
    "LearningRateSchedule",
    "Precision",
    "PretrainConfig",
    "PreviewConfig",
    "RunConfig",
    "Sampler",
    "Scalar",
    "ScheduleConfig",
    "TrainingConfig",
    "UNetConfig",
    "check_sampler",
    "check_warmup",
    "is_due",
    "known_keys",
    "load_config",
]
