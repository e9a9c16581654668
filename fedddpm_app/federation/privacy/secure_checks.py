"""What secure aggregation cannot be combined with, and what it does not hide."""

from typing import TYPE_CHECKING

from fedddpm_app.config import Config, ConfigError
from fedddpm_app.federation.messages.records import ARRAYS
from fedddpm_app.federation.privacy.mean_only import check_needs_the_mean
from fedddpm_app.training.actions import ClientAction

if TYPE_CHECKING:
    from fedddpm_app.federation.description import AlgorithmDescription

PRETRAIN = "pretrain"  # the action that returns a client's own model
PRETRAINING = (PRETRAIN, "share_images")  # and that which returns images of it


def check_secure(algorithm: "type[AlgorithmDescription]", config: Config) -> None:
    """Raise ``ConfigError`` if a run needs more of its clients' trainings than the weighted mean of their weights."""
    if not config.secure.aggregation:
        return
    given, off = "secure-aggregation = true", "secure-aggregation = false"
    check_needs_the_mean(algorithm, config, given, off)
    if unmasked := [name for name, action in algorithm.client_actions.items() if is_unmasked(name, action)]:
        raise ConfigError(
            f'{given}: algorithm = "{config.run.algorithm}" asks its clients for {", ".join(unmasked)}, a training '
            f'whose result no mask hides: use "fedavg" or "fedddpm", or {off}.'
        )


def is_unmasked(name: str, action: ClientAction) -> bool:
    """Return whether an action returns a model, or trains one, that no mask hides; not so for ``PRETRAINING``."""
    returns_model = ARRAYS in action.records
    return name != PRETRAIN and (returns_model or (action.trains and name not in PRETRAINING))


def sends_own_models(algorithm: "type[AlgorithmDescription]", config: Config) -> bool:
    """Return whether the clients of a run send models that they have pretrained, which no mask hides."""
    pretrains = PRETRAIN in algorithm.client_actions and "pretrain-steps" not in algorithm.keys_without_effect(config)
    return pretrains and config.auxiliary.sharing == "models"


def note_on_models(algorithm: "type[AlgorithmDescription]", config: Config) -> list[str]:
    """Return a note if clients whose updates are masked send models of their own."""
    if not (config.secure.aggregation and sends_own_models(algorithm, config)):
        return []
    return [
        "secure-aggregation = true hides the updates of the rounds, but every client also sends its own pretrained "
        'model to the server: use auxiliary-sharing = "images", so that none leaves a client'
    ]
