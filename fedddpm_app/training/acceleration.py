"""Acceleration of training on its device: precision, memory format, torch.compile.

The choice depends on the run config, the model and the machine, never on timing. All processes of a run on one machine
therefore make the same choice, and a run's metrics do not depend on the machine's load. The rules of "auto" come from
the measurements in docs/performance.md.
"""

import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fedddpm_app.config import ConfigError, RunConfig

LARGE_MODEL = 4_000_000  # parameters; bf16 was faster for larger models, and not for smaller ones (CPU and CUDA)


@dataclass(frozen=True)
class Acceleration:
    """The acceleration of a training; the default is plain torch.

    Attributes
    ----------
    precision : {"fp32", "bf16"}
        ``bf16`` autocasts the forward pass; weights stay float32.
    channels_last : bool
        Convolution weights, and with them the activations, have the memory layout NHWC.
    compiled : bool
        The model's forward and backward passes are compiled.
    """

    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = False
    compiled: bool = False


PLAIN = Acceleration()


def choose(run: RunConfig, model: nn.Module, device: torch.device) -> Acceleration:
    """Choose the acceleration for a training of ``model``; the run config may leave choices to "auto".

    Raises
    ------
    ConfigError
        See ``check_compiler``.
    """
    num_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    precision = run.precision
    if precision == "auto":
        precision = "bf16" if _is_faster_in_bf16(device, num_parameters) else "fp32"
    channels_last = run.memory_format == "channels-last"
    check_compiler(run, device)
    return Acceleration(precision, channels_last, run.compile == "on")


def compiled(model: nn.Module) -> Any:
    """Return the model compiled for batches of one shape; both share the weights.

    Inductor's layout optimisation is off: with it, torch 2.13.0 computed wrong gradients of a UNet on a CPU without
    an error.
    """
    return torch.compile(model, dynamic=False, options={"layout_optimization": False})


def is_watched(model: nn.Module) -> bool:
    """Return whether the model has hooks on its calls, which compiled code would skip."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in model.modules()
    )


def check_compiler(run: RunConfig, device: torch.device) -> None:
    """Raise ``ConfigError`` if the run config requests a compiled model and it cannot be compiled here."""
    missing = missing_compiler(device) if run.compile == "on" else ""
    if missing:
        raise ConfigError(f'compile = "on": {missing}; or use compile = "off".')


def missing_compiler(device: torch.device) -> str:
    """Return the missing requirement of torch.compile, with the fix; empty if nothing is missing."""
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    compiler = os.environ.get("CXX", default)
    if shutil.which(compiler) is None:
        return f"there is no C++ compiler {compiler}: install it (apt-get install g++), or set CXX to another compiler"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "there is no Python.h: install Python's headers (apt-get install python3-dev)"
    if device.type == "cuda" and find_spec("triton") is None:
        return "there is no Triton: pip install triton"
    return ""


def _is_faster_in_bf16(device: torch.device, num_parameters: int) -> bool:
    """Return whether training in bfloat16 is faster: the device has native support, and the model is large."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0) and num_parameters >= LARGE_MODEL
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cpu" and native and num_parameters >= LARGE_MODEL
