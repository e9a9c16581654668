"""FedDDPM+: FedDDPM with one correction, when learning is slow.

Federated Learning for Diffusion Models. Zihao Peng, Xijun Wang, Shengbo Chen, Hong Rao, Cong Shen. 2025.
https://arxiv.org/abs/2503.06426. The paper's abstract says that FedDDPM+ reduces training overhead by detecting
instances of slow model learning and performing a one-shot correction with the auxiliary set. The detector below is
[our reading]; no number comes from the paper.

    Signal      s_r = the clients' mean training loss ("train-loss"), or the loss of wbar on a fixed part of D_aux
                with fixed t and noise ("probe-loss")
    Slow        (s_{r-W} - s_r) / |s_{r-W}| < delta
    Detection   p slow rounds in a row -> w <- K_s steps on D_aux from wbar; then the window restarts
    Limit       at most ``max-corrections`` corrections; 1 is the one-shot, 0 means no limit

Symbols: W -> plus-window, delta -> plus-threshold, p -> plus-patience, K_s -> correction-steps, wbar -> weights.
Deviations: with the train-loss signal, pretraining and D_aux are postponed until the first correction is due
(``plus-auxiliary``): a run that is never slow has no cost for them, and the set is the same, bit for bit, whatever the
time of its generation. The probe-loss signal needs the set from the start.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fedddpm_app.algorithms.fedddpm import FedDDPM
from fedddpm_app.config import Config, ConfigError
from fedddpm_app.federation.cost import FORWARD, Cost, of_images
from fedddpm_app.progress import note
from fedddpm_app.seeding import derive_seed
from fedddpm_app.training.task import Subset
from fedddpm_app.weights import Weights


class SlowLearningDetector:
    """Detects slow learning by a signal that should fall.

    Parameters
    ----------
    window : int
        W, the number of rounds over which an improvement is measured, >= 1.
    threshold : float
        delta: a smaller relative improvement is slow.
    patience : int
        p, the number of slow rounds in a row that count as slow learning, >= 1.
    """

    def __init__(self, window: int, threshold: float, patience: int) -> None:
        self.window = window
        self.threshold = threshold
        self.patience = patience
        self.restart()

    def restart(self) -> None:
        """Forget the signals so far."""
        self._signals: list[float] = []
        self.slow_rounds = 0
        self.improvement: float | None = None

    def state_dict(self) -> dict[str, object]:
        """Return the signals in the window, and the verdict so far, for a checkpoint."""
        return {"signals": [*self._signals], "slow_rounds": self.slow_rounds, "improvement": self.improvement}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the signals of a checkpoint."""
        self._signals, self.slow_rounds = [*state["signals"]], state["slow_rounds"]
        self.improvement = state["improvement"]

    def detects(self, signal: float) -> bool:
        """Add a round's signal; return whether learning is slow now.

        ``improvement`` is then the relative improvement over the window; it is None while the window is not full.
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
        The number of corrections so far.
    """

    key_prefix = "plus-"
    state_attributes = ("corrections", "detector")

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
        self._report_decision(server_round, signal, verdict)
        if verdict != "correct":
            return False
        self.corrections += 1
        self.detector.restart()
        return True

    def signal(self, server_round: int, weights: Weights) -> float:
        """Return s_r, the value of ``plus-signal``."""
        if self.config.plus.signal == "train-loss":
            return self.train_loss
        probe = Subset.spread(self.auxiliary.ensure(), self.config.plus.probe_images)
        self.accounting.images += len(probe) * FORWARD
        return self.trainer.mean_loss(weights, probe, derive_seed(self.config.run.seed, "probe"))

    @classmethod
    def builds_at_start(cls, config: Config) -> bool:
        """Return whether D_aux is needed before round 1."""
        plus = config.plus
        wanted = plus.auxiliary == "eager" or (plus.auxiliary == "auto" and plus.signal == "probe-loss")
        return config.correction.steps > 0 and wanted

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Refuse a lazy auxiliary set if the signal is measured on it."""
        super().check_config(config)
        if config.fedddpm.pretrain_from == "global" and cls.builds_at_start(config):
            raise ConfigError(
                'pretrain-from = "global" postpones pretraining until the first correction is due, but '
                f'plus-auxiliary = "{config.plus.auxiliary}" with plus-signal = "{config.plus.signal}" needs the '
                'auxiliary set before round 1: use pretrain-from = "initial", or plus-auxiliary = "auto" with '
                'plus-signal = "train-loss".'
            )
        if config.plus.signal == "train-loss" and config.dp.train.is_private:
            raise ConfigError(
                f'plus-signal = "train-loss" with train-dp-epsilon = {config.dp.train_dp_epsilon}: clients that train '
                'privately report no loss; use plus-signal = "probe-loss".'
            )
        if config.plus.signal == "probe-loss" and config.plus.auxiliary == "lazy":
            raise ConfigError(
                'plus-auxiliary = "lazy" does not work with plus-signal = "probe-loss": the probe is a part of '
                'the auxiliary set; use plus-auxiliary = "auto", or plus-signal = "train-loss".'
            )

    @classmethod
    def cost(cls, config: Config, sizes: Sequence[int]) -> Cost:
        """Add the probe's forward passes."""
        probes = config.plus.signal == "probe-loss" and config.correction.steps
        probed = config.run.num_rounds * config.plus.probe_images if probes else 0
        return super().cost(config, sizes) + of_images(config, probed * FORWARD)

    @classmethod
    def keys_without_effect(cls, config: Config) -> dict[str, str]:
        """Add the keys of the probe, and those of a correction in a run that is too short for one."""
        unused, plus = super().keys_without_effect(config), config.plus
        if plus.signal != "probe-loss":
            unused["plus-probe-images"] = f'plus-signal = "{plus.signal}" does not use it'
        if cls.num_corrections(config) == 0:
            needed = plus.window + plus.patience
            reason = f"num-rounds = {config.run.num_rounds}, and the first correction needs {needed} rounds"
            unused |= dict.fromkeys(("plus-threshold", "plus-max-corrections"), reason)
        return unused

    @classmethod
    def num_corrections(cls, config: Config) -> int:
        """Return the largest possible number of corrections in a run."""
        rounds, plus = config.run.num_rounds, config.plus
        possible = rounds // (plus.window + plus.patience)
        return min(possible, plus.max_corrections) if plus.max_corrections else possible

    def _report_decision(self, server_round: int, signal: float, verdict: str) -> None:
        """Record a decision and log it."""
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
        change = "" if improvement is None else f", improved by {improvement:.2%} (threshold {plus.threshold:.2%})"
        note(f"round {server_round}: {plus.signal} {signal:.4f}{change}: {verdict}")
