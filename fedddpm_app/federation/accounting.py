"""The cost of a run: bytes sent and received, and wall time per phase."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_MB = 1e6
_COMPUTE = "compute/steps"
_EVALUATION = "comm/evaluation_mb"
_TOTALS = ("time/phase_s", "time/round_s")
COST_KEYS = ("comm/up_mb", "comm/down_mb", _EVALUATION, _COMPUTE)  # of each line of stats.jsonl that has a cost


class Accounting:
    """Running totals of a run.

    Parameters
    ----------
    images_per_step : int
        The images of the gradient step in which compute is reported.

    Attributes
    ----------
    bytes_up, bytes_down : int
        Array payload from and to the clients, including pretraining uploads, without ``bytes_of_evaluation``.
    bytes_of_evaluation : int
        Array payload for evaluation alone: the weights that clients only evaluate, and the clients' own models that
        the server collects.
    images : float
        Compute in training images, see ``cost``.
    seconds : dict of str to float
        Wall time by phase: ``pretrain``, ``auxiliary``, ``train``, ``correct``, ``evaluate``, ...
    """

    def __init__(self, images_per_step: int = 1) -> None:
        self.bytes_up = 0
        self.bytes_down = 0
        self.bytes_of_evaluation = 0
        self.images = 0.0
        self._images_per_step = images_per_step
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the body's wall time to a phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - began

    @contextmanager
    def counted_before(self, is_counted: bool) -> Iterator[None]:
        """Leave compute and bytes as they are if those of the body are counted already, by an earlier process."""
        before = self.bytes_up, self.bytes_down, self.images
        try:
            yield
        finally:
            if is_counted:
                self.bytes_up, self.bytes_down, self.images = before

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Count the body's bytes as ``bytes_of_evaluation``, apart from those that the training needs.

        The number of evaluations is a setting, and differs between algorithms: those with models that stay at the
        clients, and private trainings, send none.
        """
        up, down = self.bytes_up, self.bytes_down
        try:
            yield
        finally:
            self.bytes_of_evaluation += self.bytes_up - up + self.bytes_down - down
            self.bytes_up, self.bytes_down = up, down

    def state_dict(self) -> dict[str, object]:
        """Return the totals, for a checkpoint."""
        totals = {"bytes_up": self.bytes_up, "bytes_down": self.bytes_down, "images": self.images}
        return totals | {"bytes_of_evaluation": self.bytes_of_evaluation, "seconds": dict(self.seconds)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the totals of a checkpoint."""
        self.bytes_up, self.bytes_down, self.images = state["bytes_up"], state["bytes_down"], state["images"]
        self.bytes_of_evaluation = state["bytes_of_evaluation"]
        self.seconds = defaultdict(float, state["seconds"])

    def add(self, spent: Mapping[str, object]) -> None:
        """Add the cost that a line of ``stats.jsonl`` reports, see ``Span.spent``."""
        for key, value in spent.items():
            if isinstance(value, int | float):
                if key == "comm/up_mb":
                    self.bytes_up += round(value * _MB)
                elif key == "comm/down_mb":
                    self.bytes_down += round(value * _MB)
                elif key == _EVALUATION:
                    self.bytes_of_evaluation += round(value * _MB)
                elif key == _COMPUTE:
                    self.images += value * self._images_per_step
                elif key.startswith("time/") and key not in _TOTALS:
                    self.seconds[key.removeprefix("time/").removesuffix("_s")] += value

    def summary(self) -> dict[str, float]:
        """Return the totals with their units in the keys: MB (10^6 bytes), gradient steps and seconds."""
        times = {f"time/{phase}_s": round(seconds, 3) for phase, seconds in self.seconds.items()}
        return {
            "comm/up_mb": self.bytes_up / _MB,
            "comm/down_mb": self.bytes_down / _MB,
            **_evaluation_mb(self.bytes_of_evaluation),
            _COMPUTE: self.steps(self.images),
            **times,
        }

    def steps(self, images: float) -> float:
        """Return training images as gradient steps, rounded to 6 digits, because sums of thirds are not exact."""
        return round(images / self._images_per_step, 6)


class Span:
    """The cost of a run from the creation of this object on."""

    def __init__(self, accounting: Accounting) -> None:
        self._accounting = accounting
        self._up, self._down, self._images = accounting.bytes_up, accounting.bytes_down, accounting.images
        self._evaluation = accounting.bytes_of_evaluation
        self._seconds = dict(accounting.seconds)
        self._began = time.perf_counter()

    def exclude(self, inner: "Span") -> None:
        """Exclude the cost since ``inner``, a later span, began."""
        now = self._accounting
        self._up += now.bytes_up - inner._up
        self._down += now.bytes_down - inner._down
        self._images += now.images - inner._images
        self._evaluation += now.bytes_of_evaluation - inner._evaluation
        for phase, seconds in now.seconds.items():
            self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds - inner._seconds.get(phase, 0.0)
        self._began += time.perf_counter() - inner._began

    def spent(self, total_key: str) -> dict[str, float]:
        """Return bytes, compute and seconds since the span began; ``total_key`` is the key of the total wall time."""
        now = self._accounting
        spent = {
            f"time/{phase}_s": round(seconds - self._seconds.get(phase, 0.0), 3)
            for phase, seconds in now.seconds.items()
            if seconds != self._seconds.get(phase, 0.0)
        }
        return {
            "comm/up_mb": (now.bytes_up - self._up) / _MB,
            "comm/down_mb": (now.bytes_down - self._down) / _MB,
            **_evaluation_mb(now.bytes_of_evaluation - self._evaluation),
            _COMPUTE: now.steps(now.images - self._images),
            **spent,
            total_key: round(time.perf_counter() - self._began, 3),
        }


def _evaluation_mb(num_bytes: int) -> dict[str, float]:
    """Return the bytes of evaluation in MB; empty if there are none."""
    return {_EVALUATION: num_bytes / _MB} if num_bytes else {}
