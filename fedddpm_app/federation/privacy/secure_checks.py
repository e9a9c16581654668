"""What secure aggregation cannot be combined with, and what it does not hide."""

from typing import TYPE_CHECKING

from fedddpm_app.config import Config
from fedddpm_app.federation.privacy.mean_only import check_needs_the_mean

if TYPE_CHECKING:
    from fedddpm_app.federation.description import AlgorithmDescription

PRETRAIN = "pretrain"  # the action that returns a client's own model


def check_secure(algorithm: "type[AlgorithmDescription]", config: Config) -> None:
    """Raise ``ConfigError`` if the server step of a run needs more than the weighted mean of the clients' weights."""
    if config.secure.aggregation:
        check_needs_the_mean(algorithm, config, "secure-aggregation = true", "secure-aggregation = false")


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
