"""The state of a strategy's server half: what a checkpoint holds, and how a resumed run continues from it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fedddpm_app.config import ConfigError, is_due
from fedddpm_app.weights import Weights, WeightsMismatchError, check_match

if TYPE_CHECKING:
    from fedddpm_app.federation.strategy import FederatedStrategy

MODEL, EMA = "model", "ema"
_CLIENT = "client-"


def named_state(owner: object, names: Sequence[str]) -> dict[str, object]:
    """Return attributes by name; an object with a ``state_dict`` method is represented by its result."""
    values = {name: getattr(owner, name) for name in names}
    return {name: value.state_dict() if hasattr(value, "state_dict") else value for name, value in values.items()}


def load_named_state(owner: object, state: Mapping[str, object]) -> None:
    """Set attributes by name; an object with a ``load_state_dict`` method loads its part."""
    for name, value in state.items():
        load = getattr(getattr(owner, name, None), "load_state_dict", None)
        if load is not None:
            load(value)
        else:
            setattr(owner, name, value)


def models_of(strategy: "FederatedStrategy", weights: Weights) -> dict[str, Weights]:
    """Return the models of a checkpoint by name: the global weights, their EMA, and the clients' models."""
    models = {MODEL: weights, EMA: strategy.ema_weights or weights}
    return models | {f"{_CLIENT}{i:04d}/{MODEL}": model for i, model in sorted(strategy.client_models.items())}


def load_models(strategy: "FederatedStrategy", models: Mapping[str, Weights], like: Weights) -> Weights:
    """Set a strategy's models from a checkpoint, and return the global weights; ``like`` gives the order of names.

    Raises
    ------
    ConfigError
        When the models are not of the run's architecture.
    """
    for name, weights in models.items():
        try:
            check_match(like, weights)
        except WeightsMismatchError as error:
            raise ConfigError(
                f"resume: the checkpoint's {name} does not fit the model of this run: {error}; use the model and the "
                "version of the app that the run was started with."
            ) from error
    ordered = {name: {key: weights[key] for key in like} for name, weights in models.items()}
    strategy.client_models = {
        int(name.removeprefix(_CLIENT).removesuffix(f"/{MODEL}")): weights
        for name, weights in ordered.items()
        if name.startswith(_CLIENT)
    }
    strategy.ema_weights = ordered[EMA]
    return ordered[MODEL]


class Checkpoints:
    """Decides which rounds get a checkpoint, and has the recorder store them.

    Parameters
    ----------
    strategy : FederatedStrategy
        The strategy whose state is stored.
    """

    def __init__(self, strategy: "FederatedStrategy") -> None:
        self._strategy = strategy
        self._config = strategy.config
        self._failures = 0  # checkpoints in a row that could not be stored

    def is_permanent(self, server_round: int) -> bool:
        """Return whether a round's checkpoint is still kept after the end of the run."""
        every, num_rounds = self._config.recording.checkpoint_every, self._config.run.num_rounds
        return server_round > 0 and is_due(every, server_round, num_rounds)

    def save(self, server_round: int, weights: Weights) -> None:
        """Store a checkpoint, if one is due, and then call ``after_checkpoint``.

        The checkpoints of round 0 and of the last round are complete when this returns, except if they have failed:
        then ``after_checkpoint`` is not called, because the run may be resumed from an earlier time.

        Raises
        ------
        OSError
            When clients keep states, and would remove those of the last checkpoint that could be stored.
        """
        strategy, keep = self._strategy, self._config.recording.checkpoint_keep
        if not keep and not self.is_permanent(server_round):
            return
        self._failures = 0 if strategy.recorder.wait_for_checkpoint() else self._failures + 1
        if strategy.keeps_state(self._config) and self._failures >= max(1, keep):
            strategy.recorder.check_checkpoint()
        strategy.recorder.save_checkpoint(
            server_round, models_of(strategy, weights), strategy.state(), keep, self.is_permanent
        )
        ends_a_phase = server_round in (0, self._config.run.num_rounds)
        if not ends_a_phase or strategy.recorder.wait_for_checkpoint():
            strategy.after_checkpoint(server_round)
