"""What a client computes, in plain torch: weights in, weights and figures out.

A process keeps one ``Worker`` per run config, with its model, optimiser buffers and data, over clients
and rounds (Ray reuses its actors). Nothing of one client reaches the next: see ``Trainer``.
"""

import functools
from dataclasses import dataclass

import torch

from fedddpm_app import progress
from fedddpm_app import weights as weights_module
from fedddpm_app.config import Config
from fedddpm_app.data.tensors import ClientData, load_client_data
from fedddpm_app.device import cpu_threads, resolve_device
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.diffusion.objective import DenoisingObjective, create_noise_scheduler
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.evaluation.denoising import denoising_loss
from fedddpm_app.seeding import derive_seed
from fedddpm_app.training import Trainer, TrainingHook, TrainResult
from fedddpm_app.weights import Weights


@dataclass(frozen=True)
class LocalResult:
    """A client's trained weights and what they were trained on.

    ``label_counts`` is empty but for the pretraining of a class-conditional model: a client reveals no
    more than is needed.
    """

    training: TrainResult
    num_examples: int
    label_counts: list[int]


class Worker:
    """Trains and evaluates the run's model on any client's data.

    Parameters
    ----------
    config : Config
        The run's config.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.device = resolve_device(config.run.device)
        self.objective = DenoisingObjective(create_noise_scheduler(config.diffusion))
        model = create_unet(config.unet, config.data, config.run.seed)
        self.trainer = Trainer(model, self.objective, config.training, self.device, config.run.precision)
        self._data = functools.lru_cache(maxsize=None)(self._load)

    def pretrain(self, weights: Weights, partition_id: int) -> LocalResult:
        """Train a local model from ``weights`` for FedDDPM's auxiliary set; returns its EMA weights."""
        settings, data = self.config.pretrain, self._data(partition_id).train
        with cpu_threads(self.config.run.client_threads):
            result = self.trainer.train(
                weights,
                data,
                steps=settings.steps,
                seed=derive_seed(self.config.run.seed, "pretrain", partition_id),
                learning_rate=settings.learning_rate,
                learning_rate_schedule=settings.learning_rate_schedule,
                ema_decay=self.config.training.ema_decay,
                on_report=progress.reporter("pretrain", partition_id),
            )
        return LocalResult(result, len(data), self._label_counts(data))

    def train(self, weights: Weights, partition_id: int, server_round: int, hook: TrainingHook) -> LocalResult:
        """Train one round from the global ``weights``, with what the algorithm's ``hook`` adds."""
        data = self._data(partition_id).train
        with cpu_threads(self.config.run.client_threads):
            result = self.trainer.train(
                weights,
                data,
                steps=self.config.training.steps_for(len(data)),
                seed=derive_seed(self.config.run.seed, "local-train", server_round, partition_id),
                hook=hook,
                on_report=progress.reporter("train", partition_id, server_round, self.config.run.num_rounds),
            )
        return LocalResult(result, len(data), [])

    def evaluate(self, weights: Weights, partition_id: int) -> tuple[float, int]:
        """Return the denoising loss of ``weights`` on the client's held-out images, and their number."""
        data = self._data(partition_id).held_out
        if not len(data):
            raise ValueError("it holds one image only, which it trains on, so that none is held out to evaluate on")
        weights_module.load_into(self.trainer.model, weights)
        with cpu_threads(self.config.run.client_threads):
            loss = denoising_loss(self.trainer.model, self.objective, data, self.config.schedule.evaluate_draws)
        return loss, len(data)

    def _load(self, partition_id: int) -> ClientData:
        data = load_client_data(self.config.data, self.config.run.seed, partition_id)
        return ClientData(self._prepare(data.train), self._prepare(data.held_out))

    def _prepare(self, data: ImageTensors) -> ImageTensors:
        return (data if self.config.data.class_conditional else data.without_labels()).to(self.device)

    def _label_counts(self, data: ImageTensors) -> list[int]:
        if data.labels is None:
            return []
        return torch.bincount(data.labels, minlength=self.config.data.num_classes).tolist()


@functools.lru_cache(maxsize=1)
def get_worker(config: Config) -> Worker:
    """Return this process's worker for a run config, made on first use."""
    return Worker(config)
