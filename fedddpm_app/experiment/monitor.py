"""Monitoring of a run's models during training: test loss, sample sheets, the final pipelines."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from flwr.app import ArrayRecord, MetricRecord
from torch import Tensor

from fedddpm_app import weights as weights_module
from fedddpm_app.config import Config, is_due
from fedddpm_app.device import cpu_threads, resolve_device
from fedddpm_app.diffusion.conditional import create_pipeline
from fedddpm_app.diffusion.ensemble import SHARES, Ensemble, in_order, name_of, number_of
from fedddpm_app.diffusion.guidance import guidance_of
from fedddpm_app.diffusion.images import DivergedError, ImageTensors
from fedddpm_app.diffusion.labels import class_rows
from fedddpm_app.diffusion.pipelines import PIPELINE
from fedddpm_app.diffusion.pruned_unet import with_own_config
from fedddpm_app.diffusion.sampling import image_seeds, sampler_name
from fedddpm_app.evaluation.denoising import DenoisingLoss, band_edges, banded_denoising_loss
from fedddpm_app.evaluation.evaluator import Evaluator
from fedddpm_app.evaluation.metrics import Metric
from fedddpm_app.experiment.assessment import Assessment
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.federation.messages.records import to_weights
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.progress import logger
from fedddpm_app.recording.files import write_json, writing
from fedddpm_app.recording.recorder import RunRecorder
from fedddpm_app.shapes import fit_model
from fedddpm_app.weights import Weights


class Monitor:
    """Flower's ``evaluate_fn``: called with the global weights before round 1 and after every round.

    Parameters
    ----------
    config : Config
        The intervals of evaluations and sheets.
    strategy : FederatedStrategy
        Provides the EMA weights.
    recorder : RunRecorder
        Stores the results.
    task : DiffusionTask
        Provides the model, the forward process, the loss and the global test split; without a test split, no loss is
        measured.
    evaluator : Evaluator or None
        Computes the metrics of generated images; None for a run without them.

    Attributes
    ----------
    latest : Weights
        The last global weights that the monitor received.
    """

    def __init__(
        self,
        config: Config,
        strategy: FederatedStrategy,
        recorder: RunRecorder,
        task: DiffusionTask,
        evaluator: Evaluator | None = None,
    ) -> None:
        self.config, self.strategy, self.recorder, self.task = config, strategy, recorder, task
        self.latest: Weights = {}
        device = resolve_device(config.run.device)
        self.model = task.create_model().to(device)
        self.test_data = task.data.test
        if self.test_data is not None:
            data = self.test_data if config.data.class_conditional else self.test_data.without_labels()
            self.test_data = data.to(device)
        self.assessment = (
            Assessment(config, recorder, evaluator, self.model, task.scheduler) if evaluator is not None else None
        )

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Evaluate, and save sheets, if they are due; return the losses on the test split."""
        self.latest = to_weights(arrays)
        fit_model(self.model, self.latest)
        num_rounds, evaluation = self.config.run.num_rounds, self.config.evaluation
        losses: dict[str, float] = {}
        with cpu_threads(self.config.run.server_threads):
            measures = self.test_data is not None or self._measures_images(server_round)
            if measures and is_due(evaluation.eval_every, server_round, num_rounds):
                losses |= self._losses(server_round)
                losses |= self._metrics(server_round)
            if not server_round:
                self._save_real()
            if server_round and is_due(self.config.preview.every, server_round, num_rounds):
                with _warn_on_failure(f"round {server_round}: no sheet of images"):
                    self._preview(server_round)
        return MetricRecord({**losses})

    def finish(self) -> list[Metric]:
        """Write the pipeline, then run the full evaluation; return its metrics."""
        fit_model(self.model, self.latest)
        self.save_pipeline()
        if self.assessment is None or not self.config.evaluation.eval_final_images:
            return []
        auxiliary = getattr(self.strategy, "auxiliary_data", None)
        images = auxiliary.images.cpu() if isinstance(auxiliary, ImageTensors) else None
        models = self._models(self.config.run.num_rounds)
        if not models:
            logger.warning("no model of a client was collected: there are no metrics")
            return []
        with self.strategy.accounting.timed("final-evaluate"), cpu_threads(self.config.run.server_threads):
            return self.assessment.at_end(self._ensembles(models), self._weights_name, images)

    @property
    def _weights_name(self) -> str:
        """The kind of weights that generate images and are evaluated; see ``SamplingInfo``."""
        if self.strategy.shares:
            return "pretrained"
        averaged = self.strategy.ema_weights is not None and self._is_global
        return "ema" if averaged and self.config.training.server_ema_decay else "raw"

    def save_pipeline(self) -> None:
        """Write ``pipeline/`` with the EMA weights; without a global model, it contains one pipeline per client."""
        for name, weights in self._models(self.config.run.num_rounds).items():
            weights_module.load_into(self.model, weights)
            pipeline = create_pipeline(with_own_config(self.model.eval()), self.task.scheduler, self.config)
            folder = self.recorder.directory / PIPELINE / name
            with writing(folder):
                pipeline.save_pretrained(str(folder))
        if self.strategy.shares:
            path = self.recorder.directory / PIPELINE / SHARES
            with writing(path):
                write_json(path, self.strategy.shares.state_dict())

    @property
    def _is_global(self) -> bool:
        return self.strategy.has_global_model(self.config)

    def _ensembles(self, models: dict[str, Weights]) -> dict[str, Ensemble]:
        """Return what generates images, by name: every model alone, or the clients' models together."""
        if self.strategy.shares:
            return {"": Ensemble(self.strategy.client_models, self.strategy.shares)}
        return {name: Ensemble.of_one(weights) for name, weights in models.items()}

    def _models(self, server_round: int) -> dict[str, Weights]:
        """Return a round's models by name: the EMA of the global model, or the models that stand for clients.

        Before round 1, all clients have the initial weights. Without a global model, the result may be empty.
        """
        if self._is_global or server_round == 0:
            return {"": self.strategy.ema_weights or self.latest}
        clients = self.strategy.evaluated(server_round)
        return {name_of(partition): clients[partition] for partition in sorted(clients)}

    def _measures_images(self, server_round: int) -> bool:
        """Return whether a round has metrics of generated images."""
        return bool(server_round and self.assessment and self.config.evaluation.eval_images)

    def _metrics(self, server_round: int) -> dict[str, float]:
        """Return the cheap metrics of a round; a failure to compute them does not stop the round."""
        models = self._models(server_round) if self._measures_images(server_round) else {}
        if not (models and self.assessment):
            return {}
        with _warn_on_failure(f"round {server_round}: no metrics"):
            metrics = self.assessment.after_round(server_round, self._ensembles(models), self._weights_name)
            self.strategy.record(**{"eval/metrics": [metric.to_dict() for metric in metrics]})
            return flat(metrics)
        return {}

    def _losses(self, server_round: int) -> dict[str, float]:
        """Return the mean loss on the test split, and the EMA's loss also by timestep; empty without a test split.

        Without a global model, the losses are means over the clients' models, and the line of the round has each one.
        """
        data = self.test_data
        models = self._models(server_round) if data is not None else {}
        if data is None or not models:
            return {}
        ema_mean, bands = self._loss(models, data)
        mean = self._loss({"": self.latest}, data).mean if "" in models else ema_mean
        edges = band_edges(self.task.loss_fn.num_timesteps)
        named = {f"eval/ema_loss_t{first}-{last}": loss for (first, last), loss in zip(edges, bands, strict=True)}
        return {"eval/loss": mean, "eval/ema_loss": ema_mean, **named}

    def _loss(self, models: dict[str, Weights], data: ImageTensors) -> DenoisingLoss:
        """Return the models' mean loss on the test split; record the losses and the median of clients' models.

        The mean is weighted by the models' shares of the images if they have any.
        """
        draws, losses = self.config.evaluation.eval_draws, []
        for weights in models.values():
            weights_module.load_into(self.model, weights)
            losses.append(banded_denoising_loss(self.model, self.task.loss_fn, data, draws))
        factors = [1] * len(models)
        if "" not in models:
            factors = [*self.strategy.shares.num_examples.values()] or factors
            means = {str(number_of(name)): loss.mean for name, loss in zip(models, losses, strict=True)}
            self.strategy.record(**{"eval/client_losses": means, "eval/median_loss": statistics.median(means.values())})
        bands = [_mean(same, factors) for same in zip(*(loss.bands for loss in losses), strict=True)]
        return DenoisingLoss(_mean([loss.mean for loss in losses], factors), bands)

    def _save_real(self) -> None:
        """Write a sheet of the test split, unless it belongs to a site: then it stays with its owner."""
        test, data = self.task.data.test, self.config.data
        if test is not None and self.config.preview.images and data.partition != "sites":
            self.recorder.pictures.save_real(test, self.config.preview.images, self.task.data.class_names)

    def _preview(self, server_round: int) -> None:
        """Write a sheet of each model that generates alone; for clients' models, also one with a row per client."""
        ensembles = self._ensembles(self._models(server_round))
        images = {}
        for name, ensemble in ensembles.items():
            with _warn_on_failure(f"round {server_round}: no sheet of {name or 'images'}"):
                images[name] = self._sheet(server_round, name, ensemble)
        if images and "" not in images:
            self.recorder.pictures.save_clients(images, server_round, self._about_preview)

    @property
    def _about_preview(self) -> str:
        preview, eta = self.config.preview, self.config.diffusion.ddim_eta
        sampler = sampler_name(preview.sampler, eta, guidance_of(self.config))
        return f"{self._weights_name} weights, {sampler}, {preview.sampler_steps} steps"

    def _sheet(self, server_round: int, name: str, ensemble: Ensemble) -> Tensor:
        """Generate a sheet with fixed seeds; for a conditional model it has a row (or more) per class."""
        data, preview = self.config.data, self.config.preview
        count, labels = preview.images, None
        if data.class_conditional:
            labels = class_rows(data.num_classes, preview.images)
            count = len(labels)
        batches = ensemble.sample(
            self.model,
            self.task.scheduler,
            sampler=preview.sampler,
            steps=preview.sampler_steps,
            seeds=image_seeds(self.config.run.seed, "preview", count),
            shape=data.image_shape,
            labels=labels,
            eta=self.config.diffusion.ddim_eta,
            guidance=guidance_of(self.config),
        )
        images = in_order(batches)
        self.recorder.generated["preview"] += count
        known = self.task.data.has_train  # with sites, the server may have no images
        names = self.task.data.class_names if known else data.classes
        self.recorder.pictures.save_samples(
            images,
            server_round,
            self._about_preview,
            of_clients=not self._is_global,
            labels=labels,
            class_names=names,
            name=name,
        )
        return images


@contextmanager
def _warn_on_failure(missing: str) -> Iterator[None]:
    """Log a warning instead of ending the run if the model generates NaN or a disk is full."""
    try:
        yield
    except (DivergedError, OSError) as error:
        logger.warning("%s: %s", missing, error)


def _mean(values: Sequence[float], factors: Sequence[int]) -> float:
    return sum(factor * value for factor, value in zip(factors, values, strict=True)) / sum(factors)


def flat(metrics: list[Metric]) -> dict[str, float]:
    """Return metrics as plain numbers for curves: value, number of images and floor."""
    return {
        f"eval/{metric.name}{suffix}": number
        for metric in metrics
        for suffix, number in (("", metric.value), ("_n", metric.n), ("_floor", metric.floor))
    }
