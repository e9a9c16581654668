"""One-shot sampling from the mixture of the clients' own models: a control without federated training.

    Pretraining   every client i: w_i <- local steps on L(.; D_i) from the initial w; upload w_i and n_i, as FedDDPM
    Rounds        nothing is trained, and nothing is sent
    Images        N images: m_i samples of w_i, m_i proportional to n_i, sum m_i = N; with classes, the part of client i
                  in the images of class c is proportional to its images of class c

Symbols: as in ``fedddpm``; m_i -> shares.
The models and their shares are those of FedDDPM's auxiliary set, so the run shows how good D_aux is as a generator,
with the classes, the sampler and the number of images of every other run's evaluation, and without D_aux's check for
models that generate noise. There is no global model: metrics, sheets and
`fedddpm sample` are of all models together, with the shares above, and `pipeline/` has one pipeline per client, with
their shares.
Cooperative sampling from local models by Langevin steps over their composed energies (OpenReview 1GCWcrZTX8, NeurIPS
2025, read in its abstract) refines the images of such a mixture; this control is the mixture alone.
Deviations: none; it is our control. Clients upload the EMA of their weights, as in FedDDPM. The final weights, which
``simulate`` returns, are the mean of the models by n_i; no training made this mean useful. ``num-rounds = 1`` is
enough: further rounds repeat the evaluation.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from flwr.serverapp import Grid

from fedddpm_app import weights as weights_module
from fedddpm_app.apportion import Shares
from fedddpm_app.auxiliary.collection import ModelCollection
from fedddpm_app.auxiliary.gate import KEYS as CHECK_KEYS
from fedddpm_app.auxiliary.gate import check_settings, keys_of_no_check
from fedddpm_app.auxiliary.pretraining import PRETRAIN, OwnTraining
from fedddpm_app.config import Config, ConfigError, check_warmup, keys_of_algorithms
from fedddpm_app.federation.cost import Cost
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.training.actions import ClientAction
from fedddpm_app.weights import Weights

_NAME = "pretrain"
_CHECKED = ("auxiliary-size", "auxiliary-sampler", "auxiliary-batch-size")  # of the images of the clients' check
_ROUNDS = ("local-steps", "local-epochs", "learning-rate", "learning-rate-schedule", "clients-per-round")


class Mixture(FederatedStrategy):
    """Collects the clients' pretrained models, which generate the images of the run together."""

    client_actions: ClassVar[Mapping[str, ClientAction]] = {_NAME: PRETRAIN}
    own_aggregation = "the control has no global model and aggregates nothing"
    trains_on_clients = False
    evaluates_on_clients = False
    uses_keys = ("pretrain-", "ema-decay", *CHECK_KEYS, *_CHECKED)
    state_attributes = ("shares",)

    @classmethod
    def own_training(cls, config: Config) -> OwnTraining:
        """Return the training of the clients' own models."""
        return OwnTraining(_NAME, config.pretrain.steps)

    @classmethod
    def has_global_model(cls, config: Config) -> bool:
        """Return False: the clients' models generate the images."""
        return False

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Refuse a warm-up that takes all of pretraining, and models that may not leave the clients."""
        super().check_config(config)
        check_settings(config)
        if config.auxiliary.sharing == "images":
            raise ConfigError(
                'auxiliary-sharing = "images", but algorithm = "mixture" generates from the clients\' models on the '
                'server: use auxiliary-sharing = "models".'
            )
        steps = config.pretrain.steps
        check_warmup(f"pretrain-steps = {steps}", steps, config.training.warmup_steps)

    @classmethod
    def keys_without_effect(cls, config: Config) -> dict[str, str]:
        """Add the keys of the clients' training in the rounds and of the global model."""
        reason = f'algorithm = "{config.run.algorithm}" trains nothing in the rounds, and has no global model'
        unused = super().keys_without_effect(config) | dict.fromkeys((*_ROUNDS, "server-ema-decay"), reason)
        unused |= keys_of_no_check(config)
        if not config.checks_memorization:
            reason = f'algorithm = "{config.run.algorithm}" has no auxiliary set, and clients do not check their models'
            unused |= {key: reason for key in keys_of_algorithms() if key.startswith(_CHECKED)}
        unused["pretrain-from"] = f'algorithm = "{config.run.algorithm}" pretrains from the initial weights'
        if config.transport.wire_dtype == "int8-delta":  # bf16 also rounds the pretrained models
            unused["wire-dtype"] = reason
        return unused

    @classmethod
    def averages(cls, config: Config) -> dict[str, tuple[int, str]]:
        """Return the average of a pretrained model, the only one."""
        return {"ema-decay": (config.pretrain.steps, "step")}

    @classmethod
    def total_steps(cls, config: Config, client_steps: int) -> int:
        """Return the steps of pretraining on all clients."""
        return config.data.num_clients * config.pretrain.steps

    @classmethod
    def cost(cls, config: Config, sizes: Sequence[int]) -> Cost:
        """Return the cost of pretraining; the images are generated by the evaluation, which is not counted."""
        return cls.own_training(config).cost(config, sizes)

    def prepare(self, grid: Grid, weights: Weights) -> Weights:
        """Have every client pretrain."""
        self._collection().run()
        return weights

    def after_aggregation(self, server_round: int, weights: Weights) -> Weights:
        """Take over the pretrained models, with their shares; return the initial weights, at the end the mean."""
        if not self.client_models:
            models = self._collection().run()  # read again, also by a run that is resumed from before round 1
            sizes = {model.partition_id: model.num_examples for model in models}
            self.client_models = {model.partition_id: model.load() for model in models}
            self.shares = Shares(sizes, {model.partition_id: model.label_counts for model in models})
        if server_round < self.config.run.num_rounds:
            return self.initial_weights
        sizes = self.shares.num_examples
        return weights_module.weighted_mean((self.client_models[i], sizes[i]) for i in sizes)

    def after_checkpoint(self, server_round: int) -> None:
        """Remove the files of the models, which the checkpoint of the last round has."""
        if server_round == self.config.run.num_rounds:
            self._collection().discard()

    def _collection(self) -> ModelCollection:
        return ModelCollection(self, self.own_training(self.config), self.initial_weights)
