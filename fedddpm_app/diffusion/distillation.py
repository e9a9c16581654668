"""Distillation of diffusion models: a model learns the predictions of the models that generated its training images.

    L(w; x, i) = E_{t, noise} weight(t) || model_w(x_t, t) - model_{w_i}(x_t, t) ||^2
    x_t = sqrt(abar_t) x + sqrt(1 - abar_t) noise

for an image x that the teacher w_i generated. The weight of a timestep and the loss of a pixel are those of the
denoising objective. With ``loss = "mse"``, the minimiser is that of the denoising loss for data that follow the
teacher's distribution, for every prediction type, but the target has no variance from the noise.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from fedddpm_app import weights as weights_module
from fedddpm_app.device import autocast
from fedddpm_app.diffusion.images import ImageBatch, ImageTensors
from fedddpm_app.diffusion.objective import DenoisingObjective, predict
from fedddpm_app.weights import Weights

_CHUNK = 4096  # least number of images whose targets are computed together; the random numbers depend on it
_CHUNK_BYTES = 2**28  # of the float32 images of a chunk, at most; their noise, x_t and targets take as much each
_IMAGES_PER_TEACHER = 16  # in a chunk, so that the teachers need not be read for a few images each


class DistillationBatch(NamedTuple):
    """A batch with the teachers' predictions.

    ``x_t``, ``target``: float32, shape (B, C, H, W). ``t``: int64, shape (B,). ``labels``: int64, shape (B,), or None.
    """

    x_t: Tensor
    t: Tensor
    labels: Tensor | None
    target: Tensor


class DistillationSet:
    """Generated images, each with its teacher: training data that arrange their own batches.

    Targets are computed for many batches at a time, teacher by teacher, so that only one teacher is in memory.

    Parameters
    ----------
    images : ImageTensors
        The generated images, on the device of the training.
    teachers : sequence of int
        The number of the teacher of each image.
    load : callable
        Returns a teacher's weights, given its number.
    model : nn.Module
        Takes the weights of one teacher after the other; not the model that is trained.
    objective : DenoisingObjective
        The loss that the teachers were trained with: its forward process, its weights of the timesteps and its loss of
        a pixel, and how it changes images and labels.
    batch_size : int
        Images of a teacher's forward pass, at most.
    precision : {"fp32", "bf16"}
        Of the teachers' forward passes.
    """

    def __init__(
        self,
        images: ImageTensors,
        teachers: Sequence[int],
        load: Callable[[int], Weights],
        model: nn.Module,
        objective: DenoisingObjective,
        *,
        batch_size: int = 250,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        if len(images) != len(teachers):
            raise ValueError(f"{len(images)} images have {len(teachers)} teachers: each image needs one")
        self._images = images
        self._teachers = torch.tensor(teachers, dtype=torch.int64)
        self._load = load
        self._model = model.to(images.device).eval().requires_grad_(False)
        self._objective = objective
        self._batch_size = batch_size
        fit = _CHUNK_BYTES // (4 * images.images[0].numel())
        self._chunk_size = min(max(_CHUNK, _IMAGES_PER_TEACHER * len(set(teachers))), fit)
        self._precision: Literal["fp32", "bf16"] = precision

    def __len__(self) -> int:
        return len(self._images)

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self._images.device

    def batch(self, index: Tensor) -> ImageBatch:
        """Return the images at ``index``, without targets."""
        return self._images.batch(index)

    def loss(self, model: nn.Module, batch: DistillationBatch, generator: torch.Generator) -> Tensor:
        """Return the loss of a model's predictions, whose targets are those of the teachers, a scalar."""
        prediction = predict(model, batch.x_t, batch.t, batch.labels)
        return self._objective.losses_of(prediction, batch.target, batch.t).mean()

    def stream(self, order: Iterator[Tensor], steps: int, generator: torch.Generator) -> Iterator[DistillationBatch]:
        """Yield one batch for each of ``steps`` index batches; t and noise come from ``generator``."""
        while steps > 0:
            first = next(order)
            count = min(steps, max(1, self._chunk_size // len(first)))
            index = torch.cat([first, *(next(order) for _ in range(count - 1))])
            yield from self._chunk(index, len(first), generator)
            steps -= count

    def _chunk(self, index: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[DistillationBatch]:
        """Yield the batches of ``index``."""
        images, labels = self._objective.augmented(self._images.batch(index), generator)
        t = torch.randint(self._objective.num_timesteps, (len(index),), generator=generator, device=self.device)
        noise = torch.randn(images.shape, generator=generator, device=self.device)
        x_t = self._objective.scheduler.add_noise(images, noise, t)
        target = self._targets(self._teachers[index.cpu()], x_t, t, labels)
        for k in range(0, len(index), batch_size):
            part = slice(k, k + batch_size)
            yield DistillationBatch(x_t[part], t[part], None if labels is None else labels[part], target[part])

    @torch.no_grad()
    def _targets(self, teachers: Tensor, x_t: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        """Return each image's prediction by its teacher, float32."""
        target = torch.empty_like(x_t)
        for teacher in sorted(set(teachers.tolist())):
            weights_module.load_into(self._model, self._load(teacher))
            for rows in (teachers == teacher).nonzero().flatten().to(x_t.device).split(self._batch_size):
                with autocast(self.device, self._precision):
                    found = predict(self._model, x_t[rows], t[rows], None if labels is None else labels[rows])
                target[rows] = found.float()
        return target
