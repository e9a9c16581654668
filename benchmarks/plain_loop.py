"""The training loop of diffusers' unconditional-training example, for comparison.

It keeps the example's ``DataLoader`` with its default of no workers, the conversion of each image to a float tensor in
[-1, 1] on access, ``AdamW``, the learning-rate schedule, clipping to 1, ``EMAModel`` with warm-up, and ``loss.item()``
in every step. It leaves out ``accelerate``, the decoding and resizing of pictures, logging and the progress bar, which
favours the plain loop.
"""

import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.models import synchronize


class Pictures(Dataset):  # type: ignore[type-arg]
    """Images as uint8 arrays of shape (H, W, C), turned into tensors as ``ToTensor`` and ``Normalize`` do."""

    def __init__(self, images: Tensor) -> None:
        self._pictures = [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in images]

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = torch.from_numpy(self._pictures[index]).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        return {"input": image.sub_(0.5).div_(0.5)}


class PlainLoop:
    """The example's loop; it continues from its last step.

    Parameters
    ----------
    model : UNet2DModel
        Trained in place.
    scheduler : DDPMScheduler
        The forward process.
    images : Tensor
        uint8 on the CPU, shape (N, C, H, W), N a multiple of ``batch_size``.
    batch_size : int
        Images per step.
    device : torch.device
        The device of the steps.
    """

    def __init__(
        self, model: UNet2DModel, scheduler: DDPMScheduler, images: Tensor, batch_size: int, device: torch.device
    ) -> None:
        self.model = model.to(device)
        self.scheduler = scheduler
        self.device = device
        self.losses: list[float] = []
        self._loader = DataLoader(Pictures(images), batch_size=batch_size, shuffle=True)
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
        )
        self._schedule = get_scheduler("cosine", self._optimizer, num_warmup_steps=500, num_training_steps=100_000)
        self._ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        self._batches = self._endless()

    def seconds(self, steps: int) -> float:
        """Run a number of steps, and return their wall time in seconds."""
        synchronize(self.device)
        began = time.perf_counter()
        for _ in range(steps):
            self._step(next(self._batches)["input"].to(self.device))
        synchronize(self.device)
        return time.perf_counter() - began

    def _endless(self) -> Iterator[dict[str, Tensor]]:
        while True:
            yield from self._loader

    def _step(self, clean_images: Tensor) -> None:
        noise = torch.randn(clean_images.shape, dtype=torch.float32, device=self.device)
        total = self.scheduler.config.num_train_timesteps
        timesteps = torch.randint(0, total, (len(clean_images),), device=self.device).long()
        noisy_images = self.scheduler.add_noise(clean_images, noise, timesteps)
        model_output = self.model(noisy_images, timesteps).sample
        loss = F.mse_loss(model_output.float(), noise.float())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        self._ema.step(self.model.parameters())
        self.losses.append(loss.detach().item())
