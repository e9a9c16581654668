"""The cost of a run: bytes sent and received, and wall time per phase."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_MB = 1e6
_TOTALS = ("time/phase_s", "time/round_s")


class Accounting:
    """Running totals of a run.

    Attributes
    ----------
    bytes_up, bytes_down : int
        Array payload from and to the clients, including pretraining uploads.
    seconds : dict of str to float
        Wall time by phase: ``pretrain``, ``auxiliary``, ``train``, ``correct``, ``evaluate``, ...
    """

    def __init__(self) -> None:
        self.bytes_up = 0
        self.bytes_down = 0
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the body's wall time to a phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - began

    def state_dict(self) -> dict[str, object]:
        """Return the totals, for a checkpoint."""
        return {"bytes_up": self.bytes_up, "bytes_down": self.bytes_down, "seconds": dict(self.seconds)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the totals of a checkpoint."""
        self.bytes_up, self.bytes_down = state["bytes_up"], state["bytes_down"]
        self.seconds = defaultdict(float, state["seconds"])

    def add(self, spent: Mapping[str, object]) -> None:
        """Add the cost that a line of ``stats.jsonl`` reports, see ``Span.spent``."""
        for key, value in spent.items():
            if isinstance(value, int | float):
                if key == "comm/up_mb":
                    self.bytes_up += round(value * _MB)
                elif key == "comm/down_mb":
                    self.bytes_down += round(value * _MB)
                elif key.startswith("time/") and key not in _TOTALS:
                    self.seconds[key.removeprefix("time/").removesuffix("_s")] += value

    def summary(self) -> dict[str, float]:
        """Return the totals with their units in the keys: MB (10^6 bytes) and seconds."""
        times = {f"time/{phase}_s": round(seconds, 3) for phase, seconds in self.seconds.items()}
        return {"comm/up_mb": self.bytes_up / _MB, "comm/down_mb": self.bytes_down / _MB, **times}


class Span:
    """The cost of a run from the creation of this object on."""

    def __init__(self, accounting: Accounting) -> None:
        self._accounting = accounting
        self._up, self._down = accounting.bytes_up, accounting.bytes_down
        self._seconds = dict(accounting.seconds)
        self._began = time.perf_counter()

    def exclude(self, inner: "Span") -> None:
        """Exclude the cost since ``inner``, a later span, began."""
        now = self._accounting
        self._up += now.bytes_up - inner._up
        self._down += now.bytes_down - inner._down
        for phase, seconds in now.seconds.items():
            self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds - inner._seconds.get(phase, 0.0)
        self._began += time.perf_counter() - inner._began

    def spent(self, total_key: str) -> dict[str, float]:
        """Return bytes and seconds since the span began; ``total_key`` is the key of the total wall time."""
        now = self._accounting
        spent = {
            f"time/{phase}_s": round(seconds - self._seconds.get(phase, 0.0), 3)
            for phase, seconds in now.seconds.items()
            if seconds != self._seconds.get(phase, 0.0)
        }
        return {
            "comm/up_mb": (now.bytes_up - self._up) / _MB,
            "comm/down_mb": (now.bytes_down - self._down) / _MB,
            **spent,
            total_key: round(time.perf_counter() - self._began, 3),
        }
