"""FedDDPM: federated training of diffusion models on Flower. Names are imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedddpm_app.algorithms.fedddpm import FedDDPM
    from fedddpm_app.algorithms.fedddpm_plus import FedDDPMPlus
    from fedddpm_app.config import Config, ConfigError, load_config
    from fedddpm_app.diffusion.conditional import ClassConditionalPipeline
    from fedddpm_app.federation.errors import RoundFailedError
    from fedddpm_app.federation.messages.replies import Reply, ReplyRefusedError
    from fedddpm_app.federation.rounds.exchanged import Exchanged
    from fedddpm_app.federation.strategy import FederatedStrategy
    from fedddpm_app.inprocess.simulate import simulate
    from fedddpm_app.training.actions import ActionAnswer, ActionRequest, ClientAction
    from fedddpm_app.training.hooks import TrainingHook, TrainResult
    from fedddpm_app.training.task import Batch
    from fedddpm_app.weights import RunningMean, Weights

_MODULES = {
    "ActionAnswer": "training.actions",
    "ActionRequest": "training.actions",
    "Batch": "training.task",
    "ClassConditionalPipeline": "diffusion.conditional",
    "ClientAction": "training.actions",
    "Config": "config",
    "ConfigError": "config",
    "Exchanged": "federation.rounds.exchanged",
    "FedDDPM": "algorithms.fedddpm",
    "FedDDPMPlus": "algorithms.fedddpm_plus",
    "FederatedStrategy": "federation.strategy",
    "Reply": "federation.messages.replies",
    "ReplyRefusedError": "federation.messages.replies",
    "RoundFailedError": "federation.errors",
    "RunningMean": "weights",
    "TrainResult": "training.hooks",
    "TrainingHook": "training.hooks",
    "Weights": "weights",
    "load_config": "config",
    "simulate": "inprocess.simulate",
}

__all__ = [
    "ActionAnswer",
    "ActionRequest",
    "Batch",
    "ClassConditionalPipeline",
    "ClientAction",
    "Config",
    "ConfigError",
    "Exchanged",
    "FedDDPM",
    "FedDDPMPlus",
    "FederatedStrategy",
    "Reply",
    "ReplyRefusedError",
    "RoundFailedError",
    "RunningMean",
    "TrainResult",
    "TrainingHook",
    "Weights",
    "load_config",
    "simulate",
]


def __getattr__(name: str) -> object:
    """Import a public name, and keep it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return found


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted([*globals(), *__all__])


def load_ipython_extension(shell: object) -> None:
    """Give a notebook the command: IPython calls this for ``%load_ext fedddpm_app``, and ``%fedddpm run`` works."""
    import_module("fedddpm_app.cli.notebook").register(shell)
