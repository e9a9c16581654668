"""The models of the speed benchmarks, as run configs, and the timing of their steps."""

import time
from collections.abc import Callable

import torch

from fedddpm_app.config import Config, Scalar, default_run_config, load_config
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.diffusion.objective import DenoisingObjective, create_noise_scheduler
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.training.acceleration import Acceleration
from fedddpm_app.training.task import Batch, TrainingData
from fedddpm_app.training.trainer import Trainer

TINY, MIDDLE, LARGE = "0.16 M 8x8", "1.1 M 28x28", "35.75 M 32x32"
MODELS: dict[str, dict[str, Scalar]] = {
    TINY: {},  # the demo's model
    MIDDLE: {"image-size": 28, "unet-channels": "32,64,64", "unet-attention-resolutions": "7"},
    LARGE: {  # the shape of google/ddpm-cifar10-32
        "image-size": 32,
        "image-channels": 3,
        "unet-channels": "128,256,256,256",
        "unet-layers-per-block": 2,
        "unet-attention-resolutions": "16",
        "unet-norm-groups": 32,
    },
}


def config_of(model: str) -> Config:
    """Return the default config with a model of ``MODELS``."""
    return load_config(default_run_config() | MODELS[model])


def random_images(config: Config, count: int, device: torch.device) -> ImageTensors:
    """Return random images in the shape of a config's images."""
    size, generator = config.data.image_size, torch.Generator().manual_seed(0)
    shape = (count, config.data.image_channels, size, size)
    return ImageTensors(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)).to(device)


def create_benchmark_trainer(config: Config, device: torch.device, acceleration: Acceleration) -> Trainer:
    """Return the app's trainer for a config's model."""
    model = create_unet(config.unet, config.data, config.run.seed)
    objective = DenoisingObjective(create_noise_scheduler(config.diffusion))
    return Trainer(model, objective, config.training, device, acceleration)


class TimedData:
    """Data that time the training steps; the device is synchronised at the first and the last timed step.

    Parameters
    ----------
    data : TrainingData
        The data set.
    steps : int
        Number of timed steps, after ``warm_up`` other steps.
    """

    def __init__(self, data: TrainingData, steps: int, warm_up: int = 1) -> None:
        self.total_steps = warm_up + steps + 1
        self.on_start: Callable[[], object] = lambda: None
        self.seconds = 0.0
        self._data = data
        self._marks = (warm_up, warm_up + steps)
        self._taken = 0

    def __len__(self) -> int:
        return len(self._data)

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self._data.device

    def batch(self, index: torch.Tensor) -> Batch:
        """Return the batch at ``index``."""
        first, last = self._marks
        if self._taken in self._marks:
            synchronize(self.device)
        if self._taken == first:
            self.on_start()
            self._began = time.perf_counter()
        if self._taken == last:
            self.seconds = time.perf_counter() - self._began
        self._taken += 1
        return self._data.batch(index)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
