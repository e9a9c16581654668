"""The optimiser and the learning-rate schedule of a training, by their run-config names."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fedddpm_app.config import LearningRateSchedule, TrainingConfig


def create_optimizer(parameters: list[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """Create the configured optimiser, in the version that updates all parameters in one kernel."""
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay, fused=True)
        case "adam":
            return torch.optim.Adam(parameters, config.learning_rate, weight_decay=config.weight_decay, fused=True)
        case _:
            return torch.optim.SGD(
                parameters, config.learning_rate, config.momentum, weight_decay=config.weight_decay, foreach=True
            )


def reset_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Reset an optimiser to its first step, and keep the memory of its buffers."""
    for state in optimizer.state.values():
        for buffer in state.values():
            if isinstance(buffer, Tensor):
                buffer.zero_()


def gradients_of(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return the parameters' gradients, not copied; a missing gradient becomes 0."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [p.grad for p in parameters if p.grad is not None]


@torch.no_grad()
def add_to_gradients(parameters: Sequence[nn.Parameter], terms: Sequence[Tensor], factor: float = 1.0) -> None:
    """Add ``factor * term`` to each parameter's gradient, in place; a missing gradient counts as 0."""
    torch._foreach_add_(gradients_of(parameters), list(terms), alpha=factor)


@torch.no_grad()
def pull_to(parameters: Sequence[nn.Parameter], anchor: Sequence[Tensor], factor: float) -> None:
    """Add the gradient of ``factor / 2 ||parameters - anchor||^2`` to the gradients, in place."""
    values: list[Tensor] = [parameter.detach() for parameter in parameters]
    add_to_gradients(parameters, torch._foreach_sub(values, list(anchor)), factor)


def create_schedule(
    optimizer: torch.optim.Optimizer, learning_rate: float, kind: LearningRateSchedule, warmup_steps: int, steps: int
) -> LambdaLR:
    """Create the schedule of one training and set its first learning rate.

    Parameters
    ----------
    optimizer : Optimizer
        Its learning rate is replaced.
    learning_rate : float
        The learning rate after the warm-up.
    kind : {"constant", "cosine"}
        ``cosine`` falls to 0 over ``steps``.
    warmup_steps, steps : int
        Optimiser steps of the linear warm-up, and of the training. The first learning rate is never 0: diffusers'
        schedules start at 0, so that a training of one step would change nothing.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = learning_rate
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, kind, warmup_steps, steps))


def learning_rate_factor(step: int, kind: LearningRateSchedule, warmup_steps: int, steps: int) -> float:
    """Return the factor of the learning rate at a step, from 0; see ``create_schedule``."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if kind == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))


def gradient_weight(factors: Iterable[float], momentum: float) -> float:
    """Return the sum of the gradients' weights in a training, ``||a_i||_1`` of FedNova (Wang et al. 2020, 3.2).

    With gradients ``g_k``, SGD ends at ``w - learning_rate * sum_k a_k g_k``. The result is ``sum_k a_k``; it is the
    number of steps K for a constant learning rate without momentum.

    Parameters
    ----------
    factors : iterable of float
        The learning rate's factor at each step; see ``learning_rate_factor``.
    momentum : float
        In [0, 1).
    """
    velocity = total = 0.0
    for factor in factors:
        velocity = momentum * velocity + 1.0
        total += factor * velocity
    return total
