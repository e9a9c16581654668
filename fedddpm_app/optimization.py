"""The optimiser of a training and its learning-rate schedule, by their run-config names."""

import torch
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from fedddpm_app.config import LearningRateSchedule, TrainingConfig

_SCHEDULES = {"constant": "constant_with_warmup", "cosine": "cosine"}  # their names in diffusers


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
        At the end of the warm-up.
    warmup_steps, steps : int
        Optimiser steps of the linear warm-up, and in all.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = learning_rate
    return get_scheduler(_SCHEDULES[kind], optimizer, num_warmup_steps=warmup_steps, num_training_steps=steps)  # type: ignore[no-any-return]
