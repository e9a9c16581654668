"""What secure aggregation cannot be combined with, and what it does not hide."""

from collections.abc import Container
from typing import TYPE_CHECKING

from fedddpm_app.config import Config
from fedddpm_app.federation.mean_only import check_needs_the_mean

if TYPE_CHECKING:
    from fedddpm_app.federation.description import AlgorithmDescription


def check_secure(algorithm: "type[AlgorithmDescription]", config: Config) -> None:
    """Raise ``ConfigError`` if the server step of a run needs more than the weighted mean of the clients' weights."""
    if config.secure.aggregation:
        check_needs_the_mean(algorithm, config, "secure-aggregation = true", "secure-aggregation = false")


def note_on_models(algorithm: "type[AlgorithmDescription]", config: Config, unused: Container[str]) -> list[str]:
    """Return a note if clients send models of their own, which no mask hides; ``unused``: keys without effect."""
    sends = "pretrain" in algorithm.client_actions and "pretrain-steps" not in unused
    if not (config.secure.aggregation and sends and config.auxiliary.sharing == "models"):
        return []
    return [
        "secure-aggregation = true hides the updates of the rounds, but every client also sends its own pretrained "
        'model to the server: use auxiliary-sharing = "images", so that none leaves a client'
    ]
