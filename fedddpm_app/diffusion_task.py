"""The app's task: a diffusers UNet, the denoising loss, and images split over the clients by the run config."""

import functools

from torch import nn

from fedddpm_app.config import Config
from fedddpm_app.data.tensors import ClientData, load_client_data
from fedddpm_app.device import resolve_device
from fedddpm_app.diffusion.images import ImageTensors, concatenate
from fedddpm_app.diffusion.objective import DenoisingObjective, create_noise_scheduler
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.evaluation.denoising import denoising_loss


class DiffusionTask:
    """See ``task.Task``; data are read on first use and stay on the device."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.loss_fn = DenoisingObjective(create_noise_scheduler(config.diffusion))
        self._data = functools.lru_cache(maxsize=None)(self._load)
        self._pooled: ImageTensors | None = None

    def create_model(self) -> nn.Module:
        """Return the UNet with the run's seeded initial weights."""
        model: nn.Module = create_unet(self.config.unet, self.config.data, self.config.run.seed)
        return model

    def train_data(self, partition_id: int) -> ImageTensors:
        """Return a client's training images."""
        return self._data(partition_id).train

    def pooled_data(self) -> ImageTensors:
        """Return the training images of all clients."""
        if self._pooled is None:
            self._pooled = concatenate([self.train_data(p) for p in range(self.config.data.num_clients)])
        return self._pooled

    def local_steps(self, partition_id: int) -> int:
        """Return ``local-steps``, or those of ``local-epochs``."""
        return self.config.training.steps_for(len(self.train_data(partition_id)))

    def held_out_loss(self, model: nn.Module, partition_id: int) -> tuple[float, int]:
        """Return the denoising loss on the client's held-out images, and their number."""
        data = self._data(partition_id).held_out
        if not len(data):
            raise ValueError("it holds one image only, which it trains on, so that none is held out to evaluate on")
        return denoising_loss(model, self.loss_fn, data, self.config.schedule.evaluate_draws), len(data)

    def label_counts(self, partition_id: int) -> list[int]:
        """Return a client's training images per class, of a class-conditional model."""
        labels = self.train_data(partition_id).labels
        return [] if labels is None else labels.bincount(minlength=self.config.data.num_classes).tolist()

    def _load(self, partition_id: int) -> ClientData:
        data = load_client_data(self.config.data, self.config.run.seed, partition_id)
        return ClientData(self._prepare(data.train), self._prepare(data.held_out))

    def _prepare(self, data: ImageTensors) -> ImageTensors:
        labelled = data if self.config.data.class_conditional else data.without_labels()
        return labelled.to(resolve_device(self.config.run.device))
