"""The run config: the only place that reads it, and where every key is checked.

A run config is what Flower hands to the apps: a flat ``{"kebab-key": scalar}`` mapping, the defaults of
``[tool.flwr.app.config]`` in pyproject.toml with the ``--run-config`` overrides put in. ``load_config``
turns it into frozen dataclasses (``groups``) and checks what must fit together (``checks``).
"""

from fedddpm_app.config.checks import check_sampler, check_warmup
from fedddpm_app.config.errors import ConfigError
from fedddpm_app.config.evaluation import EvaluationConfig, PreviewConfig
from fedddpm_app.config.fields import (
    AggregatorName,
    LearningRateSchedule,
    Precision,
    Sampler,
    Scalar,
    TransportName,
    WireDtype,
)
from fedddpm_app.config.groups import (
    Config,
    DataConfig,
    DiffusionConfig,
    RunConfig,
    ScheduleConfig,
    TrainingConfig,
    UNetConfig,
    is_due,
)
from fedddpm_app.config.loading import default_run_config, known_keys, load_config
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

__all__ = [
    "AggregatorConfig",
    "AggregatorName",
    "AuxiliaryConfig",
    "Config",
    "ConfigError",
    "CorrectionConfig",
    "DataConfig",
    "DiffusionConfig",
    "EvaluationConfig",
    "FedDynConfig",
    "FedProxConfig",
    "LearningRateSchedule",
    "MoonConfig",
    "PlusConfig",
    "Precision",
    "PretrainConfig",
    "PreviewConfig",
    "RunConfig",
    "Sampler",
    "ScaffoldConfig",
    "Scalar",
    "ScheduleConfig",
    "TrainingConfig",
    "TransportConfig",
    "TransportName",
    "UNetConfig",
    "WireDtype",
    "check_sampler",
    "check_warmup",
    "default_run_config",
    "is_due",
    "known_keys",
    "load_config",
]
