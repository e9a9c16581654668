"""A change of the model's architecture between two rounds: all models of the run follow, and later replies must.

The architecture is the shapes of the weights, by name. Clients learn it from the weights that they receive, so that a
client that joins late gets the new model too. A reply of other shapes is refused (``transport.layout``).
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fedddpm_app import shapes
from fedddpm_app.config import ConfigError
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.messages.records import ARRAYS
from fedddpm_app.federation.server_state import MODEL
from fedddpm_app.progress import logger
from fedddpm_app.weights import Weights

if TYPE_CHECKING:
    from fedddpm_app.federation.strategy import FederatedStrategy

Reshape = Callable[[Weights], Weights]


def follow_change(strategy: "FederatedStrategy", server_round: int, weights: Weights) -> Weights:
    """Return a round's global weights, in the new shapes if the strategy changes its architecture after the round.

    Raises
    ------
    RoundFailedError
        When the names of the weights change, or something in the run would keep the old shapes.
    """
    reshape = strategy.change_architecture(server_round, weights)
    if reshape is None:
        return weights
    _check_can_change(strategy)
    changed = reshape(weights)
    if changed.keys() != weights.keys():
        raise RoundFailedError("change_architecture(...) must keep the names of the weights: change their shapes only.")
    if strategy.ema_weights is not None:
        strategy.ema_weights = reshape(strategy.ema_weights)
    strategy.client_models = {partition: reshape(model) for partition, model in strategy.client_models.items()}
    _adopt(strategy, changed)
    strategy.architecture = shapes.architecture(changed)
    logger.info("after round %d the model has another architecture: %s", server_round, strategy.architecture)
    return changed


def restore_architecture(
    strategy: "FederatedStrategy", models: Mapping[str, Weights], state: Mapping[str, Any]
) -> None:
    """Adopt the architecture of a checkpoint, if it is not the run's first one.

    Raises
    ------
    ConfigError
        When the checkpoint's model is not of that architecture, or its weights have other names than the run's.
    """
    known, weights, first = state["attributes"].get("architecture", ""), models[MODEL], strategy.initial_weights
    if not known:
        return
    if weights.keys() != first.keys() or shapes.architecture(weights) != known:
        raise ConfigError(
            f"resume: the checkpoint's model is not of the architecture {known} that its state names: use the model "
            "and the version of the app that the run was started with."
        )
    _adopt(strategy, {name: weights[name] for name in first})


def _adopt(strategy: "FederatedStrategy", weights: Weights) -> None:
    """Expect weights of these shapes from now on."""
    strategy.initial_weights = strategy.reply_references[ARRAYS] = weights
    strategy.__dict__.pop("trainer", None)  # it is created anew for these shapes


def _check_can_change(strategy: "FederatedStrategy") -> None:
    """Raise ``RoundFailedError`` if something would keep the old shapes."""
    further = sorted(strategy.reply_references.keys() - {ARRAYS})
    if further:
        problem = f"its replies have a further record {further[0]!r}, whose reference has the old shapes"
    elif strategy.keeps_state(strategy.config):
        problem = "its clients keep a state that has the old shapes"
    elif strategy.rule_keeps_momenta:
        problem = f'aggregator = "{strategy.config.run.aggregator}" keeps momenta that have the old shapes'
    else:
        return
    raise RoundFailedError(f'algorithm = "{strategy.config.run.algorithm}" cannot change the architecture: {problem}.')
