"""FedDDPM: federated diffusion models with server-side correction on a generated auxiliary set.

Federated Learning for Diffusion Models. Zihao Peng, Xijun Wang, Shengbo Chen, Hong Rao, Cong Shen. 2025.
https://arxiv.org/abs/2503.06426. Written from the paper's abstract; its tables, hyper-parameters and equations
were not available: [our reading] marks each part that goes beyond the abstract, and no number comes from the paper.

    Pretraining   every client i: w_i^0 <- local steps on L(.; D_i) from the initial w; upload w_i^0 and n_i
    Auxiliary     D_aux = union over i of m_i samples of w_i^0, m_i proportional to n_i, sum m_i = M   [our reading]
    Round r       wbar = sum_{i in S_r} n_i w_i / sum n_i, as FedAvg
    Correction    w <- K_s steps on L(.; D_aux) from wbar with step size eta_s                         [our choice]

With ``pretrain-from = "global"`` (our option), pretraining starts from the clients' mean of the round in which the
first correction is due, and not from the initial w.

Symbols: w -> weights, n_i -> num_examples, m_i -> share, M -> auxiliary.size, K_s -> correction.steps,
eta_s -> correction.learning_rate, D_aux -> auxiliary_data.
Deviations: clients upload the EMA of their pretrained weights (``ema-decay = 0`` uploads them raw). With a
class-conditional model, client i's samples follow its label counts, which it reports. With K_s = 0 there is no
correction, and pretraining is skipped. The correction's optimiser restarts in each round unless
``correction-keep-optimizer`` is true.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from flwr.serverapp import Grid

from fedddpm_app import progress
from fedddpm_app import weights as weights_module
from fedddpm_app.auxiliary.description import AuxiliaryDescription
from fedddpm_app.auxiliary.generation import GENERATE
from fedddpm_app.auxiliary.own_images import SHARE_IMAGES
from fedddpm_app.auxiliary.phase import AuxiliaryPhase
from fedddpm_app.auxiliary.pretraining import PRETRAIN
from fedddpm_app.auxiliary.uploads import PretrainedModel
from fedddpm_app.config import Config
from fedddpm_app.device import cpu_threads
from fedddpm_app.federation.errors import check_finite
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.progress import logger
from fedddpm_app.seeding import derive_seed
from fedddpm_app.training.actions import ClientAction
from fedddpm_app.training.hooks import TrainResult
from fedddpm_app.training.task import LossFn, TrainingData
from fedddpm_app.weights import Weights


class FedDDPM(AuxiliaryDescription, FederatedStrategy):
    """FedDDPM's server half; the client half is plain local training. Its keys and its cost: ``AuxiliaryDescription``.

    To change the algorithm, override one of ``build_auxiliary``, ``should_correct`` and ``correct``.

    Attributes
    ----------
    auxiliary : AuxiliaryPhase
        Pretraining, and D_aux.
    """

    client_actions: ClassVar[Mapping[str, ClientAction]] = {
        "pretrain": PRETRAIN,
        "generate": GENERATE,
        "share_images": SHARE_IMAGES,
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        generates = type(self).build_auxiliary is FedDDPM.build_auxiliary
        training = self.own_training(self.config)
        self.auxiliary = AuxiliaryPhase(self, training, self.build_auxiliary, generates=generates)

    @property
    def auxiliary_data(self) -> TrainingData | None:
        """D_aux on the server's device; None until it is built.

        Set it before ``start`` to use your own set: clients then do not pretrain for it.
        """
        return self.auxiliary.data

    @auxiliary_data.setter
    def auxiliary_data(self, data: TrainingData) -> None:
        self.auxiliary.data = data

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
        return self.auxiliary.generate(models)

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
        result = self.train_on_auxiliary(weights, self.steps_of_correction(), "correct", server_round)
        self.record(**{"correct/loss": result.loss, "correct/steps": result.steps})
        return result.weights

    # ---- the server's training on D_aux ---------------------------------------------------------

    def steps_of_correction(self) -> int:
        """Return the optimiser steps of a correction, K_s."""
        return self.config.correction.steps

    def objective(self, auxiliary: TrainingData) -> tuple[TrainingData, LossFn | None]:
        """Return the data and the loss of a training on D_aux (here: D_aux and the task's loss, which None means)."""
        return auxiliary, None

    def train_on_auxiliary(self, weights: Weights, steps: int, purpose: str, server_round: int) -> TrainResult:
        """Train on D_aux with the settings of the correction; ``purpose`` and the round determine the seed."""
        settings, run = self.config.correction, self.config.run
        if self.auxiliary_data is None:
            raise RuntimeError("there is no auxiliary set for the correction: auxiliary.ensure() builds it.")
        data, loss_fn = self.objective(self.auxiliary_data)
        result = self.trainer.train(
            weights,
            data,
            steps=steps,
            seed=derive_seed(run.seed, purpose, server_round),
            learning_rate=settings.learning_rate,
            learning_rate_schedule=settings.learning_rate_schedule,
            batch_size=settings.batch_size,
            loss_fn=loss_fn,
            keep_optimizer=settings.keep_optimizer,
            on_report=progress.reporter(purpose, server_round=server_round, num_rounds=run.num_rounds),
        )
        self.accounting.images += self.images_of_steps(self.config, steps, len(data))
        return result

    # ---- the base strategy's hooks --------------------------------------------------------------

    @classmethod
    def needs_models(cls, config: Config) -> str:
        """Add a ``build_auxiliary`` of a subclass, which gets the models."""
        own = cls.build_auxiliary is not FedDDPM.build_auxiliary
        reason = f"{cls.__name__}.build_auxiliary makes the set from the clients' models: do not override it"
        return super().needs_models(config) or (reason if own else "")

    def prepare(self, grid: Grid, weights: Weights) -> Weights:
        """Have every client pretrain, and build D_aux, if that is needed before round 1."""
        if self.builds_at_start(self.config) and self.auxiliary_data is None:
            self.auxiliary.check_generates()
        if self.config.fedddpm.init_from_pretrained:
            weights = weights_module.weighted_mean((m.load(), m.num_examples) for m in self.auxiliary.pretrained())
        if self.builds_at_start(self.config):
            self._ensure_auxiliary()
        elif self.config.correction.steps == 0:
            logger.info("correction-steps = 0: there is no correction, so no auxiliary set is built")
        return weights

    def state(self) -> dict[str, Any]:
        """Add the digest of D_aux: None if it is not built yet, empty if it is built and not stored."""
        return super().state() | {"auxiliary": None if self.auxiliary_data is None else self.auxiliary.digest}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Read D_aux again; if it was not stored, or is damaged, it is built when the next correction is due."""
        super().load_state(state)
        if state["auxiliary"] is not None:
            self.auxiliary.load_again(state["auxiliary"])

    def after_checkpoint(self, server_round: int) -> None:
        """Remove the pretrained models, if no later correction and no resumed run needs them."""
        stored = self.auxiliary.is_stored and not self.keeps_pretrained
        if stored or server_round == self.config.run.num_rounds or self.config.correction.steps == 0:
            self.auxiliary.drop_uploads()

    def after_aggregation(self, server_round: int, weights: Weights) -> Weights:
        """Correct the clients' mean if ``should_correct`` returns True."""
        if self.config.correction.steps == 0 or not self.should_correct(server_round, weights):
            return weights
        self._ensure_auxiliary(weights if self.config.fedddpm.pretrain_from == "global" else None)
        return self.corrected(server_round, weights)

    def _ensure_auxiliary(self, start: Weights | None = None) -> None:
        """Build D_aux if that is still to be done; where no checkpoint follows, the pretrained models go at once.

        With ``init-from-pretrained``, a run that is resumed from its start needs them again.
        """
        self.auxiliary.ensure(start)
        needed = self.config.recording.checkpoint_keep or self.config.fedddpm.init_from_pretrained
        if self.auxiliary.is_stored and not needed and not self.keeps_pretrained:
            self.auxiliary.drop_uploads()

    def corrected(self, server_round: int, weights: Weights) -> Weights:
        """Return the result of ``correct``, timed and checked."""
        with self.accounting.timed("correct"), cpu_threads(self.config.run.server_threads):
            corrected = self.correct(server_round, weights)
        fix = f"lower correction-learning-rate = {self.config.correction.learning_rate}"
        check_finite(corrected, f"the weights of round {server_round} after their correction", fix)
        return corrected
