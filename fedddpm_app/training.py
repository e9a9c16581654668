"""The one training loop: pretraining, local rounds, correction and controls all run through it.

Plain torch: it knows neither Flower nor data sets, nor that the model is a diffusion model. A ``Trainer``
owns a model and its optimiser for the life of a process and is reset for every use, so that what ran
before in the process leaves no trace.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fedddpm_app import weights as weights_module
from fedddpm_app.config import LearningRateSchedule, Precision, TrainingConfig
from fedddpm_app.device import autocast
from fedddpm_app.diffusion.images import Batch
from fedddpm_app.optimization import create_optimizer, create_schedule, reset_optimizer
from fedddpm_app.progress import StepReport, StepReporter
from fedddpm_app.seeding import split_seed
from fedddpm_app.weights import Weights

LossFn = Callable[[nn.Module, Batch, torch.Generator], Tensor]


class TrainingData(Protocol):
    """What the loop needs of a data set: its length, its device, and batches by index."""

    def __len__(self) -> int: ...

    @property
    def device(self) -> torch.device:
        """Where the batches are."""

    def batch(self, index: Tensor) -> Batch:
        """Return the batch at ``index``, int64 of shape (B,)."""


class TrainingHook:
    """What an algorithm changes in local training; this one changes nothing (FedAvg).

    A hook is made for one client and one round. ``global_weights`` are what the round started from.
    """

    def on_start(self, model: nn.Module, global_weights: Weights) -> None:
        """Prepare, with the model already at ``global_weights``."""

    def add_to_loss(self, loss: Tensor, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss to differentiate, a scalar."""
        return loss

    def adjust_gradients(self, model: nn.Module) -> None:
        """Change ``parameter.grad`` in place, after the backward pass and before clipping."""


@dataclass(frozen=True)
class TrainResult:
    """What a training gave.

    Attributes
    ----------
    weights : Weights
        The trained weights on the CPU (their EMA if one was asked for).
    loss : float
        Mean loss over all steps.
    final_loss : float
        Mean loss over the last tenth of the steps.
    steps : int
        Optimiser steps done.
    seconds : float
        Wall time of the loop.
    """

    weights: Weights
    loss: float
    final_loss: float
    steps: int
    seconds: float


def shuffled_batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield index batches for ever, all of one shape, from one random permutation after the other.

    Parameters
    ----------
    count : int
        Examples, >= 1.
    batch_size : int
        Indices per batch; a batch may run over the end of a permutation.
    generator : torch.Generator
        On the CPU.
    """
    if count < 1:
        raise ValueError("there are no examples to train on")
    pending = torch.empty(0, dtype=torch.int64)
    while True:
        while len(pending) < batch_size:
            pending = torch.cat([pending, torch.randperm(count, generator=generator)])
        yield pending[:batch_size]
        pending = pending[batch_size:]


class Trainer:
    """A model, its loss and its optimiser, reused for one training after the other.

    Parameters
    ----------
    model : nn.Module
        Trained in place; moved to ``device``.
    loss_fn : callable
        ``(model, batch, generator) -> scalar loss``.
    config : TrainingConfig
        Optimiser, weight decay, gradient clip; learning rate and batch size unless given per training.
    device : torch.device
        Where the steps run.
    precision : {"fp32", "bf16"}
        ``bf16`` autocasts the forward pass; weights stay float32.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        config: TrainingConfig,
        device: torch.device,
        precision: Precision = "fp32",
    ) -> None:
        self.model = model.to(device)
        self.loss_fn = loss_fn
        self.config = config
        self.device = device
        self.precision = precision
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = create_optimizer(self.parameters, config)

    def train(
        self,
        start: Weights,
        data: TrainingData,
        *,
        steps: int,
        seed: int,
        learning_rate: float | None = None,
        learning_rate_schedule: LearningRateSchedule | None = None,
        batch_size: int | None = None,
        hook: TrainingHook | None = None,
        ema_decay: float = 0.0,
        keep_optimizer: bool = False,
        on_report: Callable[[StepReport], None] | None = None,
    ) -> TrainResult:
        """Train from ``start`` for a number of steps.

        Parameters
        ----------
        start : Weights
            Initial weights; not changed.
        data : TrainingData
            On ``device``; at least one example when ``steps`` > 0.
        steps : int
            Optimiser steps, >= 0.
        seed : int
            Of the batches' order, t, noise and dropout.
        learning_rate, learning_rate_schedule, batch_size : optional
            Instead of the config's. The warm-up is the config's.
        hook : TrainingHook, optional
            What an algorithm adds.
        ema_decay : float
            In [0, 1); above 0 the result is the weights' exponential moving average.
        keep_optimizer : bool
            Go on with the last training's optimiser state instead of a fresh one.
        on_report : callable, optional
            Called every few seconds and at the end; reading the loss there is the only host sync.

        Returns
        -------
        TrainResult
        """
        order_seed, noise_seed, dropout_seed = split_seed(seed, 3)
        weights_module.load_into(self.model, start)
        if not keep_optimizer:
            reset_optimizer(self.optimizer)
        schedule = create_schedule(
            self.optimizer,
            learning_rate_schedule or self.config.learning_rate_schedule,
            learning_rate or self.config.learning_rate,
            self.config.warmup_steps,
            steps,
        )
        hook = hook or TrainingHook()
        hook.on_start(self.model, start)
        ema = EMAModel(self.parameters, decay=ema_decay, foreach=True) if ema_decay else None
        batches = shuffled_batches(
            len(data), batch_size or self.config.batch_size, torch.Generator().manual_seed(order_seed)
        )
        noise = torch.Generator(self.device).manual_seed(noise_seed)
        began = time.perf_counter()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(dropout_seed)
            losses = self._loop(data, steps, batches, noise, hook, schedule, ema, StepReporter(steps, on_report))
        if ema is not None and steps > 0:
            ema.copy_to(self.parameters)
        return TrainResult(
            weights=weights_module.snapshot(self.model),
            loss=float(losses.mean()) if steps else float("nan"),
            final_loss=float(losses[-max(1, steps // 10) :].mean()) if steps else float("nan"),
            steps=steps,
            seconds=time.perf_counter() - began,
        )

    def _loop(
        self,
        data: TrainingData,
        steps: int,
        batches: Iterator[Tensor],
        noise: torch.Generator,
        hook: TrainingHook,
        schedule: LambdaLR,
        ema: EMAModel | None,
        reporter: StepReporter,
    ) -> Tensor:
        self.model.train()
        losses = torch.zeros(steps, device=self.device)
        for step in range(steps):
            batch = data.batch(next(batches).to(data.device, non_blocking=True))
            self.optimizer.zero_grad(set_to_none=True)
            with autocast(self.device, self.precision):
                loss = self.loss_fn(self.model, batch, noise)
                total = hook.add_to_loss(loss, self.model, batch)
            total.backward()  # type: ignore[no-untyped-call]
            hook.adjust_gradients(self.model)
            if self.config.gradient_clip:
                nn.utils.clip_grad_norm_(self.parameters, self.config.gradient_clip, foreach=True)
            self.optimizer.step()
            schedule.step()
            if ema is not None:
                ema.step(self.parameters)
            losses[step] = loss.detach()
            reporter.after_step(step + 1, losses)
        return losses
