"""FedDDPM: federated diffusion models with server-side correction on a generated auxiliary set.

Federated Learning for Diffusion Models. Zihao Peng, Xijun Wang, Shengbo Chen, Hong Rao, Cong Shen. 2025.
https://arxiv.org/abs/2503.06426. Written from the paper's abstract; its tables, hyper-parameters and equations
were not available: [our reading] marks each part that goes beyond the abstract, and no number comes from the paper.

    Pretraining   every client i: w_i^0 <- local steps on L(.; D_i) from the initial w; upload w_i^0 and n_i
    Auxiliary     D_aux = union over i of m_i samples of w_i^0, m_i proportional to n_i, sum m_i = M   [our reading]
    Round r       wbar = sum_{i in S_r} n_i w_i / sum n_i, as FedAvg
    Correction    w <- K_s steps on L(.; D_aux) from wbar with step size eta_s                         [our choice]

Symbols: w -> weights, n_i -> num_examples, m_i -> share, M -> auxiliary.size, K_s -> correction.steps,
eta_s -> correction.learning_rate, D_aux -> auxiliary_data.
Deviations: clients upload the EMA of their pretrained weights (``ema-decay = 0`` uploads them raw). With a
class-conditional model, client i's samples follow its label counts, which it reports. With K_s = 0 there is no
correction, and pretraining is skipped. The correction's optimiser restarts in each round unless
``correction-keep-optimizer`` is true.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from flwr.serverapp import Grid

from fedddpm_app import progress
from fedddpm_app import weights as weights_module
from fedddpm_app.auxiliary.generation import GENERATE, Generation
from fedddpm_app.auxiliary.pretraining import PRETRAIN, PretrainedModel, collect_pretrained
from fedddpm_app.auxiliary.stored_set import StoredSet
from fedddpm_app.config import Config, ConfigError, check_sampler, check_warmup, keys_of_algorithms
from fedddpm_app.device import cpu_threads
from fedddpm_app.diffusion.unet import is_denoiser
from fedddpm_app.federation.errors import check_finite
from fedddpm_app.federation.phases import finish_phase
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.progress import logger
from fedddpm_app.seeding import derive_seed
from fedddpm_app.training.actions import ClientAction
from fedddpm_app.training.task import TrainingData
from fedddpm_app.weights import Weights

_PRETRAINING = ("pretrain-", "ema-decay")
_CORRECTING = ("auxiliary-", "correction-")


class FedDDPM(FederatedStrategy):
    """FedDDPM's server half; the client half is plain local training.

    To change the algorithm, override one of ``build_auxiliary``, ``should_correct`` and ``correct``.

    Attributes
    ----------
    auxiliary_data : TrainingData or None
        D_aux on the server's device; None until it is built. Set it before ``start`` to use your own set:
        clients then do not pretrain for it.
    """

    client_actions: ClassVar[Mapping[str, ClientAction]] = {"pretrain": PRETRAIN, "generate": GENERATE}
    uses_keys = (*_PRETRAINING, *_CORRECTING, "init-from-pretrained")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.auxiliary_data: TrainingData | None = None
        self._pretrained: list[PretrainedModel] = []
        self._left_out: dict[str, object] = {}
        self._stored = StoredSet(self)
        self._remove_batch_files: Callable[[], None] = lambda: None

    # ---- the three methods to override ----------------------------------------------------------

    def build_auxiliary(self, models: Sequence[PretrainedModel]) -> TrainingData:
        """Generate D_aux by batches, on the server or the nodes, as ``auxiliary-generation`` sets; see ``Generation``.

        Parameters
        ----------
        models : sequence of PretrainedModel
            At least one, by partition id.

        Returns
        -------
        TrainingData
            Here M images, uint8 (M, C, H, W), with labels int64 (M,) if the model is class-conditional.
        """
        generation = Generation(self, models)
        data = generation.run()
        self._left_out = generation.left_out()
        self.recorder.save_auxiliary(data, generation.clients)
        self._remove_batch_files = generation.remove_batch_files
        return data.to(self.trainer.device)

    def should_correct(self, server_round: int, weights: Weights) -> bool:
        """Return whether to correct ``weights``, the clients' mean of ``server_round``; FedDDPM always does."""
        return True

    def correct(self, server_round: int, weights: Weights) -> Weights:
        """Return ``weights`` after K_s optimiser steps on D_aux.

        Parameters
        ----------
        server_round : int
            From 1.
        weights : Weights
            wbar, the clients' mean, float32 on the CPU; not changed.
        """
        settings, run = self.config.correction, self.config.run
        if self.auxiliary_data is None:
            raise RuntimeError("there is no auxiliary set for the correction: ensure_auxiliary() builds it.")
        result = self.trainer.train(
            weights,
            self.auxiliary_data,
            steps=settings.steps,
            seed=derive_seed(run.seed, "correct", server_round),
            learning_rate=settings.learning_rate,
            learning_rate_schedule=settings.learning_rate_schedule,
            batch_size=settings.batch_size,
            keep_optimizer=settings.keep_optimizer,
            on_report=progress.reporter("correct", server_round=server_round, num_rounds=run.num_rounds),
        )
        self.record(**{"correct/loss": result.loss, "correct/steps": result.steps})
        return result.weights

    # ---- the base strategy's hooks --------------------------------------------------------------

    @classmethod
    def builds_at_start(cls, config: Config) -> bool:
        """Return whether D_aux is built before round 1; if not, it is built when the first correction is due."""
        return config.correction.steps > 0

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Check the keys of pretraining, of the auxiliary set and of the correction, if the run uses them."""
        super().check_config(config)
        pretrain_steps, correction_steps = config.pretrain.steps, config.correction.steps
        if _pretrains(config):
            check_warmup(f"pretrain-steps = {pretrain_steps}", pretrain_steps, config.training.warmup_steps)
        if correction_steps:
            check_warmup(f"correction-steps = {correction_steps}", correction_steps, config.training.warmup_steps)
            auxiliary, diffusion_steps = config.auxiliary, config.diffusion.diffusion_steps
            check_sampler("auxiliary-sampler-steps", auxiliary.sampler, auxiliary.sampler_steps, diffusion_steps)

    @classmethod
    def keys_without_effect(cls, config: Config) -> dict[str, str]:
        """Add the keys of the auxiliary set, the correction and pretraining, if the run does not use them."""
        unused = super().keys_without_effect(config)
        if config.correction.steps == 0:
            idle = (*_CORRECTING, "plus-", *(() if _pretrains(config) else _PRETRAINING))
            idle_keys = [key for key in keys_of_algorithms() if key.startswith(idle) and key != "correction-steps"]
            unused = {**dict.fromkeys(idle_keys, "correction-steps = 0"), **unused}
        elif cls.num_corrections(config) < 2:
            unused["correction-keep-optimizer"] = "the run has at most one correction"
        return unused

    @classmethod
    def averages(cls, config: Config) -> dict[str, tuple[int, str]]:
        """Add the average of a pretrained model."""
        pretraining = {"ema-decay": (config.pretrain.steps, "step")} if _pretrains(config) else {}
        return super().averages(config) | pretraining

    @classmethod
    def total_steps(cls, config: Config, client_steps: int) -> int:
        """Add the steps of pretraining, on every client, and of the corrections."""
        pretraining = config.data.num_clients * config.pretrain.steps if _pretrains(config) else 0
        in_rounds = client_steps if cls.trains_on_clients else 0
        return in_rounds + pretraining + cls.num_corrections(config) * config.correction.steps

    @classmethod
    def num_corrections(cls, config: Config) -> int:
        """Return the largest possible number of corrections in a run."""
        return config.run.num_rounds

    def prepare(self, grid: Grid, weights: Weights) -> Weights:
        """Have every client pretrain, and build D_aux, if that is needed before round 1."""
        if self.builds_at_start(self.config) and self.auxiliary_data is None:
            self._check_generates()
        if self.config.fedddpm.init_from_pretrained:
            self._pretrained = collect_pretrained(self, weights)
            weights = weights_module.weighted_mean((m.load(), m.num_examples) for m in self._pretrained)
        if self.builds_at_start(self.config):
            self.ensure_auxiliary()
        elif self.config.correction.steps == 0:
            logger.info("correction-steps = 0: there is no correction, so no auxiliary set is built")
        return weights

    def state(self) -> dict[str, Any]:
        """Add the digest of D_aux."""
        return super().state() | {"auxiliary": self._stored.digest}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Read D_aux again; if it was not stored, or is damaged, it is built when the next correction is due."""
        super().load_state(state)
        if self.auxiliary_data is None:
            self.auxiliary_data = self._stored.load_again(state["auxiliary"])

    def after_checkpoint(self, server_round: int) -> None:
        """Remove the pretrained models, if no later correction and no resumed run needs them."""
        stored = self.auxiliary_data is not None and self._stored.digest
        if stored or server_round == self.config.run.num_rounds or self.config.correction.steps == 0:
            self._drop_pretrained()

    def after_aggregation(self, server_round: int, weights: Weights) -> Weights:
        """Correct the clients' mean if ``should_correct`` returns True."""
        if self.config.correction.steps == 0 or not self.should_correct(server_round, weights):
            return weights
        self.ensure_auxiliary()
        with self.accounting.timed("correct"), cpu_threads(self.config.run.server_threads):
            corrected = self.correct(server_round, weights)
        fix = f"lower correction-learning-rate = {self.config.correction.learning_rate}"
        check_finite(corrected, f"the weights of round {server_round} after their correction", fix)
        return corrected

    # ---- the auxiliary set ----------------------------------------------------------------------

    def ensure_auxiliary(self) -> TrainingData:
        """Return D_aux, after pretraining and building it if that is still to be done.

        Pretraining always starts from the run's initial weights, and its seeds do not depend on the round: a D_aux
        that is built later is the same, bit for bit. A resumed run reads the D_aux that was stored before.
        """
        if self.auxiliary_data is None:
            self.auxiliary_data = self._stored.load()
        if self.auxiliary_data is None:
            self._check_generates()
            if not self._pretrained:
                self._pretrained = collect_pretrained(self, self.initial_weights)
            with self.round_log.own_phase() as span:
                with self.accounting.timed("auxiliary"), cpu_threads(self.config.run.server_threads):
                    self.auxiliary_data = self.build_auxiliary(self._pretrained)
                self._stored.check(self.auxiliary_data)
                size = {"aux/num_images": len(self.auxiliary_data)}
                row = {"phase": "auxiliary", **size, **self._left_out, **span.spent("time/phase_s")}
                finish_phase(self.recorder, row)
            self._remove_batch_files()
            self._remove_batch_files = lambda: None
        return self.auxiliary_data

    def _check_generates(self) -> None:
        """Raise, before pretraining, if the model cannot generate a set."""
        model = self.trainer.model
        if type(self).build_auxiliary is FedDDPM.build_auxiliary and not is_denoiser(model):
            raise ConfigError(
                f"correction-steps = {self.config.correction.steps}: a {type(model).__name__} is not a UNet2DModel, "
                "so it cannot generate an auxiliary set; give auxiliary_data, override build_auxiliary, or use "
                "correction-steps = 0."
            )

    def _drop_pretrained(self) -> None:
        """Remove the pretrained models, which are no longer needed."""
        for model in self._pretrained:
            model.path.unlink(missing_ok=True)
        self._pretrained = []


def _pretrains(config: Config) -> bool:
    """Return whether the run uses pretrained models."""
    return config.correction.steps > 0 or config.fedddpm.init_from_pretrained
