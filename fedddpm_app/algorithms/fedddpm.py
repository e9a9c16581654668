"""FedDDPM: federated diffusion models with server-side correction on a generated auxiliary set.

Federated Learning for Diffusion Models. Zihao Peng, Xijun Wang, Shengbo Chen, Hong Rao, Cong Shen. 2025.
https://arxiv.org/abs/2503.06426. Written from the paper's abstract; its tables, hyper-parameters and equations
were not at hand, so [our reading] marks what goes past the abstract and nothing numeric is the paper's.

    Pretraining   every client i: w_i^0 <- local steps on L(.; D_i) from the initial w; upload w_i^0 and n_i
    Auxiliary     D_aux = union over i of m_i samples of w_i^0, m_i proportional to n_i, sum m_i = M   [our reading]
    Round r       wbar = sum_{i in S_r} n_i w_i / sum n_i, as FedAvg
    Correction    w <- K_s steps on L(.; D_aux) from wbar with step size eta_s                         [our choice]

Symbols: w -> weights, n_i -> num_examples, m_i -> share, M -> auxiliary.size, K_s -> correction.steps,
eta_s -> correction.learning_rate, D_aux -> auxiliary_data.
Deviations: clients upload the EMA of their pretrained weights (``ema-decay = 0`` uploads them raw); of a
class-conditional model, client i's samples follow its label counts, which it reports; with K_s = 0 there is
nothing to correct, and pretraining is skipped. The correction's optimiser starts fresh in each round unless
``correction-keep-optimizer``.
"""

from collections.abc import Sequence
from typing import Any

import torch
from flwr.serverapp import Grid

from fedddpm_app import progress
from fedddpm_app import weights as weights_module
from fedddpm_app.config import Config, check_sampler, check_warmup
from fedddpm_app.device import cpu_threads, resolve_device
from fedddpm_app.diffusion.images import ImageTensors, concatenate
from fedddpm_app.diffusion.objective import DenoisingObjective, create_noise_scheduler
from fedddpm_app.diffusion.sampling import image_seeds, sample_images
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.federation.accounting import Mark
from fedddpm_app.federation.apportion import largest_remainder
from fedddpm_app.federation.base import FederatedDiffusion, check_finite
from fedddpm_app.federation.ports import Recorder
from fedddpm_app.federation.pretraining import PretrainedModel, collect_pretrained
from fedddpm_app.progress import ProgressEvent, logger
from fedddpm_app.seeding import derive_seed
from fedddpm_app.training import Trainer
from fedddpm_app.weights import Weights


class FedDDPM(FederatedDiffusion):
    """FedDDPM's server half; the client half is plain local training.

    To change the method, override one of ``build_auxiliary``, ``should_correct`` and ``correct``.

    Attributes
    ----------
    auxiliary_data : ImageTensors or None
        D_aux on the server's device; None before ``prepare``.
    """

    def __init__(self, config: Config, recorder: Recorder, **kwargs: Any) -> None:
        super().__init__(config, recorder, **kwargs)
        self.auxiliary_data: ImageTensors | None = None
        self.scheduler = create_noise_scheduler(config.diffusion)
        self.trainer = Trainer(
            create_unet(config.unet, config.data, config.run.seed),
            DenoisingObjective(self.scheduler),
            config.training,
            resolve_device(config.run.device),
            config.run.precision,
        )

    # ---- the three methods to override ----------------------------------------------------------

    def build_auxiliary(self, models: Sequence[PretrainedModel]) -> ImageTensors:
        """Generate D_aux, one pretrained model in memory at a time.

        Parameters
        ----------
        models : sequence of PretrainedModel
            At least one, by partition id.

        Returns
        -------
        ImageTensors
            M images, uint8 (M, C, H, W), labels int64 (M,) where the model is class-conditional.
        """
        shares = largest_remainder(self.config.auxiliary.size, [m.num_examples for m in models])
        parts = [self._sample_client(model, share) for model, share in zip(models, shares, strict=True)]
        data = concatenate(parts)
        clients = [m.partition_id for m, share in zip(models, shares, strict=True) for _ in range(share)]
        self.recorder.save_auxiliary(data, clients)
        return data

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
            raise RuntimeError("there is no auxiliary set to correct on: prepare() builds it.")
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
    def check_config(cls, config: Config) -> None:
        """Check what pretraining, the auxiliary set and the correction use, where there are any."""
        pretrain_steps, correction_steps = config.pretrain.steps, config.correction.steps
        if _pretrains(config):
            check_warmup(f"pretrain-steps = {pretrain_steps}", pretrain_steps, config.training.warmup_steps)
        if correction_steps:
            check_warmup(f"correction-steps = {correction_steps}", correction_steps, config.training.warmup_steps)
            auxiliary, diffusion_steps = config.auxiliary, config.diffusion.diffusion_steps
            check_sampler("auxiliary-sampler-steps", auxiliary.sampler, auxiliary.sampler_steps, diffusion_steps)

    @classmethod
    def extra_steps(cls, config: Config) -> int:
        """Return the steps of pretraining, on every client, and of the corrections."""
        pretraining = config.data.num_clients * config.pretrain.steps if _pretrains(config) else 0
        return pretraining + config.run.num_rounds * config.correction.steps

    def prepare(self, grid: Grid, weights: Weights) -> Weights:
        """Have every client pretrain, then build D_aux; without correction steps there is no need of it."""
        if not _pretrains(self.config):
            logger.info("correction-steps = 0: there is nothing to correct, so pretraining is skipped")
            return weights
        models = collect_pretrained(self, grid, weights)
        if self.config.schedule.init_from_pretrained:
            weights = weights_module.weighted_mean((m.load(), m.num_examples) for m in models)
        if self.config.correction.steps > 0:
            self._build_and_record(models)
        for model in models:
            model.path.unlink()
        return weights

    def after_aggregation(self, server_round: int, weights: Weights) -> Weights:
        """Correct the clients' mean where ``should_correct`` says so."""
        if self.config.correction.steps == 0 or not self.should_correct(server_round, weights):
            return weights
        with self.accounting.timed("correct"), cpu_threads(self.config.run.server_threads):
            corrected = self.correct(server_round, weights)
        fix = f"lower correction-learning-rate = {self.config.correction.learning_rate}"
        check_finite(corrected, f"the weights of round {server_round} after their correction", fix)
        return corrected

    # ---- the auxiliary set ----------------------------------------------------------------------

    def _build_and_record(self, models: Sequence[PretrainedModel]) -> None:
        mark = Mark(self.accounting)
        with self.accounting.timed("auxiliary"), cpu_threads(self.config.run.server_threads):
            self.auxiliary_data = self.build_auxiliary(models).to(self.trainer.device)
        self.recorder.append(
            {"phase": "auxiliary", "aux/num_images": len(self.auxiliary_data), **mark.since("time/phase_s")}
        )

    def _sample_client(self, model: PretrainedModel, count: int) -> ImageTensors:
        """Draw a client's share of D_aux; labels follow its label counts, by largest remainder."""
        config = self.config
        labels = None
        if config.data.class_conditional:
            per_class = largest_remainder(count, model.label_counts)
            labels = torch.repeat_interleave(torch.arange(len(per_class)), torch.tensor(per_class))
        weights_module.load_into(self.trainer.model, model.load())
        images = sample_images(
            self.trainer.model,
            self.scheduler,
            sampler=config.auxiliary.sampler,
            steps=config.auxiliary.sampler_steps,
            seeds=image_seeds(config.run.seed, "auxiliary", count, model.partition_id),
            shape=(config.data.image_channels, config.data.image_size, config.data.image_size),
            labels=labels,
            batch_size=config.auxiliary.batch_size,
            on_batch=lambda done: progress.report(
                ProgressEvent("auxiliary", done, count, 0, client=model.partition_id)
            ),
        )
        return ImageTensors(images, labels)


def _pretrains(config: Config) -> bool:
    """Return whether anything uses the pretrained models."""
    return config.correction.steps > 0 or config.schedule.init_from_pretrained
