"""FedDDPM+: FedDDPM that corrects once, when learning is slow.

Federated Learning for Diffusion Models. Zihao Peng, Xijun Wang, Shengbo Chen, Hong Rao, Cong Shen. 2025.
https://arxiv.org/abs/2503.06426. The paper's abstract says that FedDDPM+ reduces training overhead by detecting
instances of slow model learning and performing a one-shot correction with the auxiliary set. The detector below is
[our reading]; nothing numeric is the paper's.

    Signal      s_r = the clients' mean training loss ("train-loss"), or the loss of wbar on a fixed part of D_aux
                with fixed t and noise ("probe-loss")
    Slow        (s_{r-W} - s_r) / |s_{r-W}| < delta
    Detection   p slow rounds in a row -> w <- K_s steps on D_aux from wbar; then the window starts anew
    Limit       at most ``max-corrections`` corrections; 1 is the one-shot, 0 means no limit

Symbols: W -> plus-window, delta -> plus-threshold, p -> plus-patience, K_s -> correction-steps, wbar -> weights.
Deviations: with the train-loss signal, pretraining and D_aux wait until the first correction is due
(``plus-auxiliary``): a run that is never slow spends nothing on them, and the set is the same bit for bit whenever it
is made. A probe needs the set from the start.
"""

from typing import Any

from fedddpm_app.algorithms.fedddpm import FedDDPM
from fedddpm_app.config import Config, ConfigError
from fedddpm_app.progress import note
from fedddpm_app.seeding import derive_seed
from fedddpm_app.training.task import Subset
from fedddpm_app.weights import Weights


class SlowLearningDetector:
    """Watches a signal that should fall.

    Parameters
    ----------
    window : int
        Rounds W that an improvement is measured over, >= 1.
    threshold : float
        delta: a relative improvement below it is slow.
    patience : int
        Slow rounds in a row that make a detection, >= 1.
    """

    def __init__(self, window: int, threshold: float, patience: int) -> None:
        self.window = window
        self.threshold = threshold
        self.patience = patience
        self.restart()

    def restart(self) -> None:
        """Forget what was seen."""
        self._signals: list[float] = []
        self.slow_rounds = 0
        self.improvement: float | None = None

    def detects(self, signal: float) -> bool:
        """Take a round's signal; return whether learning is slow by now.

        ``improvement`` is then the relative one over the window, None while the window is not full.
        """
        self._signals.append(signal)
        if len(self._signals) <= self.window:
            return False
        before = self._signals.pop(0)
        self.improvement = (before - signal) / abs(before) if before else float(signal < 0)
        self.slow_rounds = self.slow_rounds + 1 if self.improvement < self.threshold else 0
        return self.slow_rounds >= self.patience


class FedDDPMPlus(FedDDPM):
    """FedDDPM with a detector in ``should_correct``.

    Attributes
    ----------
    corrections : int
        Done so far.
    """

    key_prefix = "plus-"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        plus = self.config.plus
        self.detector = SlowLearningDetector(plus.window, plus.threshold, plus.patience)
        self.corrections = 0

    def should_correct(self, server_round: int, weights: Weights) -> bool:
        """Return whether learning is slow and a correction is left; every decision is recorded."""
        plus = self.config.plus
        signal = self.signal(server_round, weights)
        slow = self.detector.detects(signal)
        exhausted = 0 < plus.max_corrections <= self.corrections
        if slow:
            verdict = "exhausted" if exhausted else "correct"
        elif self.detector.improvement is None:
            verdict = "waiting"
        else:
            verdict = "slow" if self.detector.slow_rounds else "learning"
        self._tell(server_round, signal, verdict)
        if verdict != "correct":
            return False
        self.corrections += 1
        self.detector.restart()
        return True

    def signal(self, server_round: int, weights: Weights) -> float:
        """Return s_r, of ``plus-signal``."""
        if self.config.plus.signal == "train-loss":
            return self.train_loss
        probe = Subset.spread(self.ensure_auxiliary(), self.config.plus.probe_images)
        return self.trainer.mean_loss(weights, probe, derive_seed(self.config.run.seed, "probe"))

    @classmethod
    def builds_at_start(cls, config: Config) -> bool:
        """Return whether D_aux is wanted before the first correction is due."""
        plus = config.plus
        wanted = plus.auxiliary == "eager" or (plus.auxiliary == "auto" and plus.signal == "probe-loss")
        return config.correction.steps > 0 and wanted

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Refuse a lazy auxiliary set where the signal is measured on it."""
        super().check_config(config)
        if config.plus.signal == "probe-loss" and config.plus.auxiliary == "lazy":
            raise ConfigError(
                'plus-auxiliary = "lazy" cannot be with plus-signal = "probe-loss": the probe is a part of the '
                'auxiliary set; use plus-auxiliary = "auto", or plus-signal = "train-loss".'
            )

    @classmethod
    def num_corrections(cls, config: Config) -> int:
        """Return the most corrections that a run can have."""
        rounds, plus = config.run.num_rounds, config.plus
        possible = rounds // (plus.window + plus.patience)
        return min(possible, plus.max_corrections) if plus.max_corrections else possible

    def _tell(self, server_round: int, signal: float, verdict: str) -> None:
        """Record a decision and show it."""
        plus, improvement = self.config.plus, self.detector.improvement
        self.record(
            **{
                "plus/signal": signal,
                "plus/improvement": improvement,
                "plus/threshold": plus.threshold,
                "plus/slow_rounds": self.detector.slow_rounds,
                "plus/verdict": verdict,
                "plus/corrections": self.corrections + (verdict == "correct"),
            }
        )
        change = "" if improvement is None else f", improved by {improvement:.2%} of at least {plus.threshold:.2%}"
        note(f"round {server_round}: {plus.signal} {signal:.4f}{change}: {verdict}")
