"""The training loop that pretraining, local rounds, correction and controls all use.

It is plain torch, and does not depend on Flower, on data sets or on diffusion. A ``Trainer`` owns a model and
its optimiser for the life of a process, and is reset for every training, so that a training does not depend on
earlier trainings.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fedddpm_app import weights as weights_module
from fedddpm_app.config import Config, LearningRateSchedule, TrainingConfig
from fedddpm_app.device import autocast, resolve_device
from fedddpm_app.progress import StepReport, StepReporter
from fedddpm_app.seeding import split_seed
from fedddpm_app.shapes import fit_model
from fedddpm_app.training.acceleration import PLAIN, Acceleration, choose, compiled, is_watched
from fedddpm_app.training.batches import shuffled_batches
from fedddpm_app.training.hooks import TrainingHook, TrainResult
from fedddpm_app.training.optimization import create_optimizer, create_schedule, reset_optimizer
from fedddpm_app.training.privacy import Privacy
from fedddpm_app.training.private_gradients import PrivateGradients
from fedddpm_app.training.secret import secret_generator
from fedddpm_app.training.task import Batch, LossFn, StreamedData, Task, TrainingData
from fedddpm_app.weights import Weights


def _batches(data: TrainingData, order: Iterator[Tensor], steps: int, generator: torch.Generator) -> Iterator[Batch]:
    """Return the batches of a training; see ``StreamedData`` for data that arrange their own."""
    return data.stream(order, steps, generator) if isinstance(data, StreamedData) else map(data.batch, order)


class Trainer:
    """A model, its loss and its optimiser, which successive trainings reuse.

    Parameters
    ----------
    model : nn.Module
        Moved to ``device``, and trained in place.
    loss_fn : callable
        ``(model, batch, generator) -> scalar loss``.
    config : TrainingConfig
        Optimiser, weight decay and gradient clip; also learning rate and batch size, unless a training sets them.
    device : torch.device
        The device of the steps.
    acceleration : Acceleration
        The acceleration of the steps. Evaluation and ``full_gradient`` are never compiled, because their last batch
        may have another shape.

    Attributes
    ----------
    model : nn.Module
        The given model, not the compiled one: weights have its names, and hooks get it.
    keeps_optimizer : bool
        Whether the last training continued with the optimiser state of the one before.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        config: TrainingConfig,
        device: torch.device,
        acceleration: Acceleration = PLAIN,
    ) -> None:
        self.model = model.to(device)
        if acceleration.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loss_fn = loss_fn
        self.config = config
        self.device = device
        self.acceleration = acceleration
        self._compiled: Any = compiled(model) if acceleration.compiled else model
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = create_optimizer(self.parameters, config)
        self.keeps_optimizer = False

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
        loss_fn: LossFn | None = None,
        hook: TrainingHook | None = None,
        ema_decay: float = 0.0,
        keep_optimizer: bool = False,
        privacy: Privacy | None = None,
        on_report: Callable[[StepReport], None] | None = None,
    ) -> TrainResult:
        """Train from ``start`` for a number of steps.

        Parameters
        ----------
        start : Weights
            Initial weights; not changed.
        data : TrainingData
            On ``device``; at least one example if ``steps`` > 0.
        steps : int
            Optimiser steps, >= 0.
        seed : int
            Determines the order of the batches, t, noise and dropout.
        learning_rate, learning_rate_schedule, batch_size : optional
            Replace the config's values. The warm-up is always the config's. A batch size of 0 means all of ``data``.
        loss_fn : callable, optional
            Replaces the trainer's loss.
        hook : TrainingHook, optional
            The algorithm's hook.
        ema_decay : float
            In [0, 1); if above 0, the result is the exponential moving average of the weights after each step, by
            ``TrainingConfig.ema_decay_at``.
        keep_optimizer : bool
            Continue with the optimiser state of the last training instead of a new state.
        privacy : Privacy, optional
            Makes the gradients private, see ``private_gradients.PrivateGradients``: Poisson batches replace those of
            ``batch_size``, clipping per example replaces ``gradient-clip``, and the hook's ``add_to_loss`` is not
            called. If the noise is secret, the operating system's randomness replaces ``seed``.
        on_report : callable, optional
            Called every few seconds and at the end; only these calls synchronise with the device to read the loss.

        Returns
        -------
        TrainResult
        """
        learning_rate = learning_rate or self.config.learning_rate
        plan = (learning_rate_schedule or self.config.learning_rate_schedule, self.config.warmup_steps, steps)
        size = self.config.batch_size if batch_size is None else batch_size
        weights_module.load_into(self.model, start)
        self.keeps_optimizer = keep_optimizer
        if not keep_optimizer:
            reset_optimizer(self.optimizer)
        schedule = create_schedule(self.optimizer, learning_rate, *plan)
        if hook is not None:
            hook.on_start(self.model)
        ema = self._create_ema(ema_decay) if ema_decay else None
        began = time.perf_counter()
        self.model.train()
        seed = secrets.randbits(63) if privacy and privacy.secret else seed
        with ExitStack() as stack:
            order, noise = stack.enter_context(self._random_streams(seed))
            loss = loss_fn or self.loss_fn
            if privacy is None:
                batches = _batches(data, shuffled_batches(len(data), size, order, data.device), steps, noise)
                set_gradients = self._gradients(loss, batches, noise, hook)
            else:
                own = torch.Generator(self.device).manual_seed(split_seed(seed, 4)[3])
                if privacy.secret:
                    order, own = secret_generator(torch.device("cpu")), secret_generator(self.device)
                private = PrivateGradients(self.model, self.optimizer, data, privacy, order, own, draws=noise)
                set_gradients = self._private_gradients(loss, stack.enter_context(private), noise)
            clip = 0.0 if privacy else self.config.gradient_clip
            losses = self._loop(set_gradients, steps, hook, clip, schedule, ema, StepReporter(steps, on_report))
        if ema is not None and steps > 0:
            ema.copy_to(self.parameters)
        return TrainResult(
            weights=weights_module.snapshot(self.model),
            loss=float(losses.mean()) if steps else float("nan"),
            final_loss=float(losses[-max(1, steps // 10) :].mean()) if steps else float("nan"),
            steps=steps,
            seconds=time.perf_counter() - began,
            privacy=privacy,
        )

    def state_dict(self) -> dict[str, object]:
        """Return the optimiser's state, for a checkpoint; empty if the next training does not continue with it."""
        return {"optimizer": self.optimizer.state_dict()["state"]} if self.keeps_optimizer else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the optimiser's state of a checkpoint."""
        self.keeps_optimizer = bool(state)
        if state:
            self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state["optimizer"]})

    def full_gradient(self, weights: Weights, data: TrainingData, seed: int) -> Weights:
        """Return the gradient of the mean loss over all of ``data``, by parameter name, on the CPU.

        t, noise and dropout are drawn once per example, with ``seed``.
        """
        weights_module.load_into(self.model, weights)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self._random_streams(seed) as (_, noise):
            for batch, share in self._all_batches(data):
                with autocast(self.device, self.acceleration.precision):
                    loss = self.loss_fn(self.model, batch, noise)
                (loss * share).backward()  # type: ignore[no-untyped-call]
        named = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        return {
            name: (torch.zeros_like(p) if p.grad is None else p.grad).detach().to("cpu", copy=True).contiguous()
            for name, p in named
        }

    @torch.no_grad()
    def mean_loss(self, weights: Weights, data: TrainingData, seed: int) -> float:
        """Return the mean loss over all of ``data`` in evaluation mode; equal seeds give the same t and noise."""
        weights_module.load_into(self.model, weights)
        self.model.eval()
        with self._random_streams(seed) as (_, noise):
            return sum(
                float(self.loss_fn(self.model, batch, noise)) * share for batch, share in self._all_batches(data)
            )

    def _create_ema(self, decay: float) -> EMAModel:
        """Return an average by ``TrainingConfig.ema_decay_at``; a least decay switches diffusers' own ramp off."""
        ramp = self.config.ema_warmup
        if not ramp:
            return EMAModel(self.parameters, decay=decay, min_decay=decay, foreach=True)
        return EMAModel(self.parameters, decay=decay, use_ema_warmup=True, inv_gamma=ramp, power=1.0, foreach=True)

    def _all_batches(self, data: TrainingData) -> Iterator[tuple[Batch, float]]:
        """Yield all examples once, in order, in batches of the config's size, each with its share of the examples."""
        count = len(data)
        for index in torch.split(torch.arange(count), self.config.batch_size or count):
            yield data.batch(index.to(data.device)), len(index) / count

    @contextmanager
    def _random_streams(self, seed: int) -> Iterator[tuple[torch.Generator, torch.Generator]]:
        """Yield the generators of the batches' order and of t and noise; dropout has a third random stream."""
        order_seed, noise_seed, dropout_seed = split_seed(seed, 3)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(dropout_seed)
            yield torch.Generator().manual_seed(order_seed), torch.Generator(self.device).manual_seed(noise_seed)

    def _gradients(
        self, loss_fn: LossFn, batches: Iterator[Batch], noise: torch.Generator, hook: TrainingHook | None
    ) -> Callable[[], Tensor]:
        """Return a function that sets the gradients of the next batch, and returns its loss."""
        model = self.model if is_watched(self.model) else self._compiled

        def set_gradients() -> Tensor:
            batch = next(batches)
            self.optimizer.zero_grad(set_to_none=True)
            with autocast(self.device, self.acceleration.precision):
                loss = loss_fn(model, batch, noise)
                total = hook.add_to_loss(loss, self.model, batch) if hook else loss
            total.backward()  # type: ignore[no-untyped-call]
            return loss.detach()

        return set_gradients

    def _private_gradients(
        self, loss_fn: LossFn, gradients: PrivateGradients, noise: torch.Generator
    ) -> Callable[[], Tensor]:
        """Return a function that sets the noisy gradients of the next batch, and returns its loss."""

        def loss_of(batch: Batch) -> Tensor:
            with autocast(self.device, self.acceleration.precision):
                return loss_fn(self.model, batch, noise)

        return lambda: gradients.next(loss_of)

    def _loop(
        self,
        set_gradients: Callable[[], Tensor],
        steps: int,
        hook: TrainingHook | None,
        clip: float,
        schedule: LambdaLR,
        ema: EMAModel | None,
        reporter: StepReporter,
    ) -> Tensor:
        losses = torch.zeros(steps, device=self.device, dtype=self.parameters[0].dtype)
        for step in range(steps):
            losses[step] = set_gradients()
            if hook:
                hook.adjust_gradients(self.model)
            if clip:
                nn.utils.clip_grad_norm_(self.parameters, clip, foreach=True)
            self.optimizer.step()
            schedule.step()
            if ema is not None:
                ema.step(self.parameters)
            reporter.after_step(step + 1, losses)
        return losses


def create_trainer(config: Config, task: Task, like: Weights | None = None) -> Trainer:
    """Create the trainer of a task from the run config; with ``like``, its model has the shapes of these weights."""
    model, device = task.create_model(), resolve_device(config.run.device)
    if like is not None:
        fit_model(model, like)
    return Trainer(model, task.loss_fn, config.training, device, choose(config.run, model, device))
