"""What a run reports at its start: settings without effect, and moving averages that do not do what their key says."""

from collections.abc import Mapping

from fedddpm_app.config import SAMPLER_KEYS, Config, Scalar, TrainingConfig, keys_without_effect, report_unused
from fedddpm_app.federation.privacy.clients import notes_on_clients
from fedddpm_app.federation.privacy.examples import notes_on_privacy
from fedddpm_app.federation.privacy.secure_checks import note_on_models
from fedddpm_app.federation.strategy import FederatedStrategy

_LARGE_SHARE = 0.5


def start_notes(algorithm: type[FederatedStrategy], config: Config, run_config: Mapping[str, Scalar]) -> list[str]:
    """Return the notes on a run's settings, one sentence each.

    Parameters
    ----------
    algorithm : type of FederatedStrategy
        The run's algorithm.
    config : Config
        The run's config.
    run_config : mapping
        The same config by key.
    """
    reasons, unused = algorithm.keys_without_effect(config), keys_without_effect(run_config)
    unused = {key: reason for key, reason in unused.items() if key not in algorithm.uses_keys}
    averages = {key: (run_config[key], *update) for key, update in algorithm.averages(config).items()}
    used = {key: each for key, each in averages.items() if each[0] and key not in reasons}
    if not used:
        reasons = {"ema-warmup": "the run has no moving average", **reasons}
    if not any(run_config[key] == "ddim" and key not in unused | reasons for key in SAMPLER_KEYS):
        reasons = {"ddim-eta": 'no sampler of the run is "ddim"', **reasons}
    notes = report_unused(run_config, unused | reasons)
    own_models = "pretrain-dp-epsilon" not in reasons
    notes += notes_on_privacy(config, trains=algorithm.trains_on_clients, pretrains=own_models)
    notes += notes_on_clients(config)
    notes += note_on_models(algorithm, config)
    for key, (decay, count, unit) in used.items():
        notes += _note_on_average(config.training, key, float(decay), count, unit)
    return notes


def _note_on_average(training: TrainingConfig, key: str, decay: float, count: int, unit: str) -> list[str]:
    """Return a note on a decay that the ramp does not reach, or that leaves much of the first weights."""
    reached = training.ema_decay_at(decay, count)
    if count > 1 and reached < decay:
        return [
            f"{key} = {decay} is not reached: with ema-warmup = {training.ema_warmup} the decay is {reached:.3g} after "
            f"{count} {unit}s; use ema-warmup = 0.0 for a constant decay"
        ]
    share = 1.0
    for update in range(2, count + 1):
        share *= training.ema_decay_at(decay, update)
    if share > _LARGE_SHARE:
        return [
            f"{key} = {decay}: after {count} {unit}s, {share:.0%} of the average are still the weights of the first "
            f"{unit}; use a smaller {key}, or ema-warmup = 9.0"
        ]
    return []
