"""Random numbers that nobody can find by trying seeds, for the noise and the sampling of private trainings.

``torch.Generator`` on the CPU uses 32 bits of its seed, which is tried through in hours.
"""

import secrets

import numpy as np
import torch
from torch import Tensor

_WORDS = 624  # of the state of the Mersenne Twister, torch's generator on the CPU, each in 8 bytes
_STATE = slice(24, 24 + 8 * _WORDS)
_DRAWS = 4


def secret_generator(device: torch.device) -> torch.Generator:
    """Return a generator whose whole state comes from the operating system (on an accelerator: its 63-bit seed)."""
    generator = torch.Generator(device).manual_seed(secrets.randbits(63))
    if device.type == "cpu":
        state = generator.get_state()
        words = np.frombuffer(secrets.token_bytes(4 * _WORDS), "<u4").astype("<i8")
        state[_STATE] = torch.from_numpy(words).view(torch.uint8)
        generator.set_state(state)
    return generator


def secret_choice(count: int, rate: float) -> Tensor:
    """Return for each of ``count`` whether it is chosen, bool: with probability ``rate``, by the operating system."""
    return _uniform(count) < rate


def secret_normal(shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Return standard normal numbers, float64, each from fresh bytes of the operating system.

    They are the mean of four, times two, so that their floating-point digits do not show the draws (Holohan and Braghin
    2021, https://arxiv.org/abs/2107.10138).
    """
    count = int(np.prod(shape))
    total = sum((torch.special.ndtri(_uniform(count)) for _ in range(_DRAWS)), torch.zeros(count, dtype=torch.float64))
    return total.div_(_DRAWS**0.5).reshape(shape)


def _uniform(count: int) -> Tensor:
    """Return numbers between 0 and 1, and neither, float64."""
    whole = np.frombuffer(secrets.token_bytes(8 * count), "<u8") >> np.uint64(12)
    return torch.from_numpy((whole.astype(np.float64) + 0.5) * 2.0**-52)
