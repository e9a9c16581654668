"""The hardware of training and sampling: device, precision, CPU threads."""

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import psutil
import torch

from fedddpm_app.config import ConfigError


def resolve_device(name: str) -> torch.device:
    """Turn the ``device`` key into a device; "auto" means CUDA if available, else MPS if available, else the CPU.

    Raises
    ------
    ConfigError
        When the device is unknown or not available.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f'device = "{name}" is not known: use auto, cpu, mps, cuda or cuda:N.') from error
    here = {"cuda": cuda and (device.index or 0) < torch.cuda.device_count(), "mps": mps, "cpu": True}
    if not here.get(device.type, False):
        raise ConfigError(
            f'device = "{name}" is not there: this process sees {torch.cuda.device_count()} CUDA devices; use '
            'device = "cpu" or "auto", or give simulated clients a GPU with client-resources-num-gpus.'
        )
    return device


def autocast(device: torch.device, precision: Literal["fp32", "bf16"]) -> AbstractContextManager[object]:
    """Return the context of a forward pass: bfloat16 autocast for ``bf16``, nothing for ``fp32``."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Run the body on ``count`` CPU threads; a run fixes the number, because sums depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def describe_machine() -> dict[str, object]:
    """Return the processor, the number of logical CPUs, the memory in GB, and the GPU (None without one)."""
    return {
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=True),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    names = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in names if line.startswith("model name")), platform.processor()
    )
