"""Evaluation of a run's models: cheap metrics after a round, all metrics at the end of the run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from fedddpm_app.config import Config, Sampler
from fedddpm_app.diffusion.ensemble import Ensemble
from fedddpm_app.diffusion.guidance import Guidance, guidance_of
from fedddpm_app.diffusion.images import DivergedError
from fedddpm_app.diffusion.labels import labels_like
from fedddpm_app.diffusion.sampling import image_seeds, sampler_name
from fedddpm_app.evaluation.copies import MEMORIZED, Pairs
from fedddpm_app.evaluation.evaluator import Evaluation, Evaluator
from fedddpm_app.evaluation.metrics import Metric, SamplingInfo, mean_over_clients
from fedddpm_app.progress import logger, note, reported
from fedddpm_app.recording.layout import AUXILIARY, SAMPLES
from fedddpm_app.recording.recorder import RunRecorder

_SHOWN = ("fid", "kid", "fd-", "kd-", "recall-", "coverage-", "class-tv")  # the metrics in a round's note


@dataclass(frozen=True)
class Plan:
    """The number of images to generate, the sampler and the guidance."""

    images: int
    sampler: Sampler
    steps: int
    eta: float
    guidance: Guidance | None

    @property
    def name(self) -> str:
        """The sampler's name in notes and metrics."""
        return sampler_name(self.sampler, self.eta, self.guidance)


class Assessment:
    """Generates images from a run's models and computes their metrics.

    Parameters
    ----------
    config : Config
        The number of images, and the sampler.
    recorder : RunRecorder
        Stores plots and sheets.
    evaluator : Evaluator
        Computes the metrics.
    model : nn.Module
        A ``UNet2DModel`` that takes the weights.
    scheduler : DDPMScheduler
        The model's forward process.
    """

    def __init__(
        self, config: Config, recorder: RunRecorder, evaluator: Evaluator, model: nn.Module, scheduler: DDPMScheduler
    ) -> None:
        self.config = config
        self.recorder = recorder
        self.evaluator = evaluator
        self.model = model
        self.scheduler = scheduler
        self._how = config.diffusion.ddim_eta, guidance_of(config)

    def after_round(self, server_round: int, models: Mapping[str, Ensemble], weights: str) -> list[Metric]:
        """Return the cheap metrics of models, by name; ``weights`` is their kind, see ``SamplingInfo``."""
        settings = self.config.evaluation
        plan = Plan(settings.eval_images, settings.eval_sampler, settings.eval_sampler_steps, *self._how)
        evaluations = self._measure_each(models, plan, weights, find_copies=False)
        metrics = _mean(evaluations, models)
        shown = ", ".join(f"{m.name} {m.value:.4g} (floor {m.floor:.4g})" for m in metrics if m.name.startswith(_SHOWN))
        still = "; still noise" if any(evaluation.noise for evaluation in evaluations.values()) else ""
        over = "" if "" in models else f"; mean over the models of {len(evaluations)} clients"
        note(f"round {server_round}: {shown}; n = {plan.images} by {plan.name} in {plan.steps} steps{over}{still}")
        return metrics

    def at_end(self, models: Mapping[str, Ensemble], weights: str, auxiliary: Tensor | None) -> list[Metric]:
        """Compute all metrics of the final models, and check the auxiliary set (uint8 (M, C, H, W)) for copies.

        The plots and sheets of the results are stored.
        """
        settings = self.config.evaluation
        steps = settings.eval_final_sampler_steps
        plan = Plan(settings.eval_final_images, settings.eval_final_sampler, steps, *self._how)
        evaluations = self._measure_each(models, plan, weights)
        metrics = _mean(evaluations, models)
        class_names = self.evaluator.reference.real.class_names
        for name, evaluation in evaluations.items():
            if evaluation.classes:
                self.recorder.pictures.save_classes(evaluation.classes.to_dict(), class_names, name)
            if evaluation.pairs:
                self._save_pairs(evaluation.pairs, SAMPLES, name)
        if auxiliary is not None:
            metrics.append(self._check_auxiliary(auxiliary))
        return metrics

    def _measure_each(
        self, models: Mapping[str, Ensemble], plan: Plan, kind: str, find_copies: bool = True
    ) -> dict[str, Evaluation]:
        """Measure each model; a client's model that generates NaN is left out with a warning, unless all do."""
        found, problem = {}, None
        for name, ensemble in models.items():
            try:
                found[name] = self._measure(ensemble, plan, kind, find_copies)
            except DivergedError as error:
                problem = error
                if name:
                    logger.warning("the model of %s is left out of the metrics: %s", name, error)
        if problem is not None and not found:
            raise problem
        return found

    def _measure(self, ensemble: Ensemble, plan: Plan, kind: str, find_copies: bool) -> Evaluation:
        sampling = SamplingInfo(plan.name, plan.steps, kind)
        return self.evaluator.measure(self._generate(ensemble, plan), sampling, find_copies=find_copies)

    def _generate(self, ensemble: Ensemble, plan: Plan) -> Iterator[Tensor]:
        """Return a plan's images, batch by batch; a conditional model's labels have the reference's distribution."""
        data, labels = self.config.data, None
        if data.class_conditional:
            labels = labels_like(self.evaluator.reference.images.labels, plan.images)
        self.recorder.generated["evaluation"] += plan.images
        batches = ensemble.sample(
            self.model,
            self.scheduler,
            sampler=plan.sampler,
            steps=plan.steps,
            seeds=image_seeds(self.config.run.seed, "evaluate", plan.images),
            shape=data.image_shape,
            labels=labels,
            eta=plan.eta,
            guidance=plan.guidance,
            batch_size=self.config.evaluation.eval_batch_size,
        )
        return reported((images for _, images in batches), "evaluate", plan.images)

    def _check_auxiliary(self, images: Tensor) -> Metric:
        detector, settings = self.evaluator.detector, self.config.auxiliary
        search = detector.start()
        for batch in torch.split(images, self.config.evaluation.eval_batch_size):
            search.add(batch)
        self._save_pairs(search.pairs, AUXILIARY)
        name = sampler_name(settings.sampler, self.config.diffusion.ddim_eta)
        return search.metric("train", SamplingInfo(name, settings.sampler_steps, "pretrained"), f"aux-{MEMORIZED}")

    def _save_pairs(self, pairs: Pairs, folder: str, name: str = "") -> None:
        threshold = self.evaluator.detector.threshold
        self.recorder.pictures.save_pairs(pairs.generated, pairs.train, pairs.ratio, threshold, folder, name)


def _mean(evaluations: Mapping[str, Evaluation], models: Mapping[str, Ensemble]) -> list[Metric]:
    left_out = [name for name in models if name not in evaluations]
    return mean_over_clients({name: evaluation.metrics for name, evaluation in evaluations.items()}, left_out)
