"""Auxiliary-only training: a control that shows whether FedDDPM is more than training on its generated set.

    Pretraining, auxiliary set   as FedDDPM
    Round r                      w <- K_s steps on L(.; D_aux) from w, on the server; clients do not train

Symbols: as in ``fedddpm``. The server takes the same steps, with the same seeds and settings, as FedDDPM's
corrections: the difference in results is the contribution of FedDDPM's rounds.
Deviations: none; it is our control.
"""

from fedddpm_app.algorithms.fedddpm import FedDDPM
from fedddpm_app.config import Config, ConfigError


class AuxiliaryOnly(FedDDPM):
    """FedDDPM without the clients' training in the rounds."""

    own_aggregation = "the control trains only on the server's auxiliary set and aggregates nothing"
    trains_on_clients = False

    @classmethod
    def keys_without_effect(cls, config: Config) -> dict[str, str]:
        """Add the keys of the clients' training in the rounds."""
        reason = 'with algorithm = "aux-only" clients do not train in the rounds'
        local = ("local-steps", "local-epochs", "learning-rate", "learning-rate-schedule", "wire-dtype")
        return dict.fromkeys(local, reason) | super().keys_without_effect(config)

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Refuse a run without any training step."""
        super().check_config(config)
        if config.correction.steps == 0:
            raise ConfigError('correction-steps = 0: algorithm = "aux-only" takes no other steps; use 1 or more.')
