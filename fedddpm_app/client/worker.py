"""What a client computes, in plain torch: weights in, weights and metrics out.

A process keeps one ``Worker`` per run config, with its model, optimiser buffers and data, over clients
and rounds (Ray reuses its actors). Nothing of one client reaches the next: see ``Trainer``.
"""

import os
import socket
import zlib
from contextlib import closing
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedddpm_app import progress
from fedddpm_app import weights as weights_module
from fedddpm_app.auxiliary.sampler import AuxiliarySampler
from fedddpm_app.config import Config
from fedddpm_app.device import cpu_threads
from fedddpm_app.diffusion.sampling import SampleBatch
from fedddpm_app.seeding import derive_seed
from fedddpm_app.training.hooks import TrainingHook, TrainResult
from fedddpm_app.training.task import Task
from fedddpm_app.training.trainer import create_trainer
from fedddpm_app.weights import Weights


@dataclass(frozen=True)
class LocalResult:
    """A client's trained weights and what they were trained on.

    ``label_counts`` is empty but for the pretraining of a class-conditional model: a client reveals no
    more than is needed.
    """

    training: TrainResult
    num_examples: int
    label_counts: list[int] = field(default_factory=list)


class Worker:
    """Trains and evaluates a task's model on any client's data.

    Parameters
    ----------
    config : Config
        The run's config.
    task : Task
        Model, loss and data.
    """

    def __init__(self, config: Config, task: Task) -> None:
        self.config = config
        self.task = task
        self.trainer = create_trainer(config, task)

    def pretrain(self, weights: Weights, partition_id: int) -> LocalResult:
        """Train a local model from ``weights`` for FedDDPM's auxiliary set; returns its EMA weights."""
        settings, data = self.config.pretrain, self.task.train_data(partition_id)
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
        return LocalResult(result, len(data), self.task.label_counts(partition_id))

    def draw(self, weights: Weights, batches: list[SampleBatch]) -> Tensor:
        """Draw images of the auxiliary set, uint8 (N, C, H, W), from a model of ``weights``."""
        return torch.cat(list(AuxiliarySampler(self.config, self.trainer.model).draw(weights, batches)))

    def train(self, hook: TrainingHook) -> LocalResult:
        """Train one client's round with what the algorithm's ``hook``, made for that round, adds."""
        partition_id, server_round = hook.round.partition_id, hook.round.server_round
        data, seed = self.task.train_data(partition_id), self.config.run.seed
        with cpu_threads(self.config.run.client_threads), closing(hook):
            result = self.trainer.train(
                hook.start_weights(),
                data,
                steps=self.task.local_steps(partition_id),
                seed=derive_seed(seed, "local-train", server_round, partition_id),
                hook=hook,
                on_report=progress.reporter("train", partition_id, server_round, self.config.run.num_rounds),
            )
            gradient_seed = derive_seed(seed, "full-gradient", server_round, partition_id)
            hook.on_end(result, lambda weights: self.trainer.full_gradient(weights, data, gradient_seed))
        return LocalResult(result, len(data))

    def evaluate(self, hook: TrainingHook) -> tuple[float, int]:
        """Return the loss of the client's weights on its held-out examples, and their number."""
        weights_module.load_into(self.trainer.model, hook.start_weights())
        with cpu_threads(self.config.run.client_threads):
            return self.task.held_out_loss(self.trainer.model, hook.round.partition_id)


def this_process() -> int:
    """Return a number that stands for this process of this host; another one's is hardly ever the same."""
    return zlib.crc32(f"{socket.gethostname()}:{os.getpid()}".encode())
