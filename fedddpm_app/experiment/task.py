"""The app's task: a diffusers UNet, the denoising loss, and images split over the clients by the run config."""

import functools

import torch
from torch import Tensor, nn

from fedddpm_app.config import Config, ConfigError
from fedddpm_app.data.dataset import open_dataset
from fedddpm_app.device import resolve_device
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.diffusion.objective import create_objective
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.evaluation.denoising import denoising_loss
from fedddpm_app.training.task import Subset, TrainingData


class DiffusionTask:
    """See ``training.task.Task``; data are read on first use.

    On a CPU, every client's data are rows of the same mapped files. On another device, a client's rows are copied
    to the device and stay there.

    Parameters
    ----------
    config : Config
        The run's config.
    data_path : str
        The folder of the one client whose images this host has; empty if ``config`` gives the place of the images.

    Attributes
    ----------
    data : FederatedDataset
        The run's images.
    scheduler : DDPMScheduler
        The forward process.
    loss_fn : DenoisingObjective
        The training loss.
    """

    def __init__(self, config: Config, data_path: str = "") -> None:
        self.config = config
        self.data = open_dataset(config.data, config.run.seed, data_path)
        self.loss_fn = create_objective(config.diffusion, config.data)
        self.scheduler = self.loss_fn.scheduler
        self._parts: dict[tuple[str, int], TrainingData] = {}

    def create_model(self) -> nn.Module:
        """Return the UNet with the run's seeded initial weights."""
        model: nn.Module = create_unet(self.config.unet, self.config.data, self.config.run.seed)
        return model

    def train_data(self, partition_id: int) -> TrainingData:
        """Return a client's training images."""
        return self._part("train", partition_id, self.data.client(partition_id).train)

    def held_out_data(self, partition_id: int) -> TrainingData:
        """Return a client's held-out images."""
        return self._part("held-out", partition_id, self.data.client(partition_id).held_out)

    def pooled_data(self) -> TrainingData:
        """Return the training images of all clients, if they are in one place."""
        if not self.data.has_train:
            raise ConfigError(
                'partition = "sites": no host has all the images, which this algorithm trains on; use another '
                "algorithm, or simulate with a folder of all sites."
            )
        return self._part("pooled", 0, torch.cat([client.train for client in self.data.clients]))

    def client_sizes(self) -> list[int] | None:
        """Return every client's number of training images; None if this host does not have all the images."""
        return [len(client.train) for client in self.data.clients] if self.data.has_train else None

    def local_steps(self, partition_id: int) -> int:
        """Return a client's steps per round: ``local-steps``, or the steps of ``local-epochs``."""
        return self.config.training.steps_for(len(self.data.client(partition_id).train))

    def held_out_loss(self, model: nn.Module, partition_id: int) -> tuple[float, int]:
        """Return the denoising loss on the client's held-out images, and their number."""
        data = self.held_out_data(partition_id)
        if not len(data):
            raise ConfigError("it has only one image, which it trains on, so it has no held-out image to evaluate on")
        return denoising_loss(model, self.loss_fn, data, self.config.evaluation.eval_draws), len(data)

    def label_counts(self, partition_id: int) -> list[int]:
        """Return a client's training images per class; empty for an unconditional model."""
        return [] if self._images.labels is None else self.class_counts(partition_id)

    def class_counts(self, partition_id: int) -> list[int]:
        """Return a client's training images per class; empty for data without labels."""
        labels = self.data.train.labels
        if labels is None:
            return []
        return labels[self.data.client(partition_id).train].bincount(minlength=self.config.data.num_classes).tolist()

    @functools.cached_property
    def _images(self) -> ImageTensors:
        """All training images, mapped; without labels for an unconditional model."""
        return self.data.train if self.config.data.class_conditional else self.data.train.without_labels()

    def _part(self, kind: str, partition_id: int, rows: Tensor) -> TrainingData:
        """Return the images of ``rows`` on the run's device, loaded once."""
        device = resolve_device(self.config.run.device)
        if (kind, partition_id) not in self._parts:
            mapped = device.type == "cpu"
            part = Subset(self._images, rows) if mapped else self._images.select(rows).to(device)
            self._parts[kind, partition_id] = part
        return self._parts[kind, partition_id]
