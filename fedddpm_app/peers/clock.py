"""The virtual clock of peers of different speed: the time that each training takes, from seeds alone.

The k-th training of peer i takes ``steps / speed_i * jitter_ik`` seconds of the virtual clock. Speeds are log-uniform
in [1 / spread, 1], and the jitter is uniform in [0.97, 1.03]; with a spread of 1 both are exactly 1. No real time
enters, so that the order of events is the same on every host and after a resume.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedddpm_app.seeding import derive_seed

_JITTER = 0.03


@dataclass(frozen=True)
class VirtualClock:
    """The durations of trainings.

    Attributes
    ----------
    seed : int
        The run's seed.
    spread : float
        The ratio of the largest possible speed to the smallest, >= 1.
    """

    seed: int
    spread: float

    def speed(self, peer: int) -> float:
        """Return the speed of a peer in steps per second, in [1 / spread, 1]."""
        return float(self.spread ** -self._uniform("peer-speed", peer))

    def duration(self, peer: int, number: int, steps: int) -> float:
        """Return the seconds of training ``number`` (from 1) of a peer, which has ``steps`` steps."""
        if self.spread == 1:
            return float(steps)
        jitter = 1 + _JITTER * (2 * self._uniform("peer-jitter", peer, number) - 1)
        return steps / self.speed(peer) * jitter

    def _uniform(self, purpose: str, *indices: int) -> float:
        return float(np.random.default_rng(derive_seed(self.seed, purpose, *indices)).random())


def next_to_end(ends: Mapping[int, float]) -> list[int]:
    """Return the peers whose trainings end next, all at the same time, in ascending order; ``ends`` is not empty."""
    first = min(ends.values())
    return sorted(peer for peer, end in ends.items() if end == first)
