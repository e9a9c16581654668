"""Auxiliary-only training: is FedDDPM more than training on its generated set? A control for FedDDPM.

    Pretraining, auxiliary set   as FedDDPM
    Round r                      w <- K_s steps on L(.; D_aux) from w, on the server; clients train nothing

Symbols: as in ``fedddpm``. The server takes the same steps, with the same seeds and settings, as FedDDPM's
corrections: what FedDDPM is better by is what its rounds add.
Deviations: none; it is our control.
"""

from fedddpm_app.algorithms.fedddpm import FedDDPM
from fedddpm_app.config import Config, ConfigError


class AuxiliaryOnly(FedDDPM):
    """FedDDPM whose rounds leave the clients out."""

    own_aggregation = "the control trains on the server's auxiliary set alone and aggregates nothing"
    trains_on_clients = False

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Refuse a run that would train nothing."""
        super().check_config(config)
        if config.correction.steps == 0:
            raise ConfigError('correction-steps = 0: algorithm = "aux-only" takes no other steps; use 1 or more.')
