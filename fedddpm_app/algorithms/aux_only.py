"""Auxiliary-only training: a control that shows whether FedDDPM is more than training on its generated set.

    Pretraining, auxiliary set   as FedDDPM
    Round r                      w <- K_s + K_r steps on L(.; D_aux) from w, on the server; clients do not train

Symbols: as in ``fedddpm``; K_r -> the steps of the round's clients together, as steps of ``correction-batch-size``
images. A run therefore costs as much compute as a FedDDPM run with the same config: the difference in results is the
contribution of the clients' training in the rounds. With ``num-rounds = 1``, the learning-rate schedule spans the whole
run.
Deviations: none; it is our control.
"""

from fedddpm_app.algorithms.fedddpm import FedDDPM
from fedddpm_app.config import Config, ConfigError
from fedddpm_app.federation.nodes.participants import sample_partitions


class AuxiliaryOnly(FedDDPM):
    """FedDDPM without the clients' training in the rounds."""

    own_aggregation = "the control trains only on the server's auxiliary set and aggregates nothing"
    trains_on_clients = False

    def steps_of_correction(self) -> int:
        """Add the steps that the round's clients would have taken, also of those that are not connected now."""
        config, run, images = self.config, self.config.run, 0.0
        known = self.clients.admission.sizes  # not that of a site that has not answered so far
        for partition in sample_partitions(sorted(known), run.clients_per_round, run.seed, self.round_log.server_round):
            size = known[partition]
            local = self.task.local_steps(partition) if self.task.client_sizes() else config.training.steps_for(size)
            images += self.hook.training_images(config, size, local, is_first=False)
        return config.correction.steps + round(images / self.images_of_steps(config, 1, len(self.auxiliary.ensure())))

    @classmethod
    def total_steps(cls, config: Config, client_steps: int) -> int:
        """Add the clients' steps, which the server takes."""
        batch, server_batch = config.training.batch_size, config.correction.batch_size
        as_server_steps = batch / server_batch / cls.images_per_image if batch and server_batch else 1.0
        return super().total_steps(config, client_steps) + round(client_steps * as_server_steps)

    @classmethod
    def keys_without_effect(cls, config: Config) -> dict[str, str]:
        """Add the keys of the clients' training in the rounds, except those that set its compute."""
        reason = f'with algorithm = "{config.run.algorithm}" clients do not train in the rounds'
        local = ["learning-rate", "learning-rate-schedule"]
        if config.transport.wire_dtype == "int8-delta":  # bf16 also rounds the pretrained models
            local.append("wire-dtype")
        return dict.fromkeys(local, reason) | super().keys_without_effect(config)

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Refuse a run without any training step."""
        super().check_config(config)
        if config.correction.steps == 0:
            raise ConfigError(
                f'correction-steps = 0 switches the auxiliary set off, which algorithm = "{config.run.algorithm}" '
                "trains on; use 1 or more."
            )
