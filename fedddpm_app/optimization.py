"""The optimiser of a training and its learning-rate schedule, by their run-config names."""

import math

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fedddpm_app.config import LearningRateSchedule, TrainingConfig


def create_optimizer(parameters: list[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """Create the configured optimiser, with the kernel that updates all parameters at once."""
    match config.optimizer:
        case "adamw":
            return torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay, fused=True)
        case "adam":
            return torch.optim.Adam(parameters, config.learning_rate, weight_decay=config.weight_decay, fused=True)
        case _:
            return torch.optim.SGD(parameters, config.learning_rate, weight_decay=config.weight_decay, foreach=True)


def reset_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Bring an optimiser to its first step, keeping the memory of its buffers."""
    for state in optimizer.state.values():
        for buffer in state.values():
            if isinstance(buffer, Tensor):
                buffer.zero_()


def create_schedule(
    optimizer: torch.optim.Optimizer, kind: LearningRateSchedule, learning_rate: float, warmup_steps: int, steps: int
) -> LambdaLR:
    """Create the schedule of one training and set its first learning rate.

    Parameters
    ----------
    optimizer : Optimizer
        Its learning rate, whatever it was, is replaced.
    kind : {"constant", "cosine"}
        ``cosine`` falls to 0 over ``steps``.
    learning_rate : float
        Reached after the warm-up.
    warmup_steps, steps : int
        Optimiser steps of the linear warm-up, and in all. The first step is never 0: diffusers' schedules start
        from 0, which in a training of one step is all of it.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = learning_rate

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if kind == "constant":
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps)))

    return LambdaLR(optimizer, factor)
