"""The run config: only this package reads it, and it checks every key.

Flower gives the apps a run config: a flat ``{"kebab-key": scalar}`` mapping with the defaults of
``[tool.flwr.app.config]`` in pyproject.toml and the ``--run-config`` overrides. ``load_config``
turns it into frozen dataclasses (``groups``) and checks that the values are compatible (``checks``).
"""

from fedddpm_app.config.admission import AdmissionConfig
from fedddpm_app.config.checks import check_sampler, check_warmup
from fedddpm_app.config.data import MAX_CLASSES, DataConfig
from fedddpm_app.config.diffusion import DiffusionConfig
from fedddpm_app.config.dp import Budget, DPConfig, PrivatePhase
from fedddpm_app.config.errors import ConfigError, first_line, one_line, plain, printable, shown, without_paths
from fedddpm_app.config.fields import (
    AggregatorName,
    Extractor,
    LearningRateSchedule,
    Precision,
    Sampler,
    Scalar,
    TransportName,
    WireDtype,
)
from fedddpm_app.config.groups import Config, is_due
from fedddpm_app.config.loading import (
    changed_keys,
    default_run_config,
    kinds_of_keys,
    known_keys,
    load_config,
    load_saved,
    packaged_app,
)
from fedddpm_app.config.model import UNetConfig
from fedddpm_app.config.overrides import Overrides, read_overrides
from fedddpm_app.config.run import RunConfig
from fedddpm_app.config.secure import SecureConfig
from fedddpm_app.config.training import TrainingConfig
from fedddpm_app.config.transport import TransportConfig
from fedddpm_app.config.unused import SAMPLER_KEYS, keys_of_algorithms, keys_without_effect, report_unused

__all__ = [
    "MAX_CLASSES",
    "SAMPLER_KEYS",
    "AdmissionConfig",
    "AggregatorName",
    "Budget",
    "Config",
    "ConfigError",
    "DPConfig",
    "DataConfig",
    "DiffusionConfig",
    "Extractor",
    "LearningRateSchedule",
    "Overrides",
    "Precision",
    "PrivatePhase",
    "RunConfig",
    "Sampler",
    "Scalar",
    "SecureConfig",
    "TrainingConfig",
    "TransportConfig",
    "TransportName",
    "UNetConfig",
    "WireDtype",
    "changed_keys",
    "check_sampler",
    "check_warmup",
    "default_run_config",
    "first_line",
    "is_due",
    "keys_of_algorithms",
    "keys_without_effect",
    "kinds_of_keys",
    "known_keys",
    "load_config",
    "load_saved",
    "one_line",
    "packaged_app",
    "plain",
    "printable",
    "read_overrides",
    "report_unused",
    "shown",
    "without_paths",
]
