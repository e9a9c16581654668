"""The privacy that a private training spends: Opacus's accountant of Renyi differential privacy (RDP).

One step is the subsampled Gaussian mechanism: each example takes part with probability q (Poisson sampling), and noise
of standard deviation sigma * clip is added to the sum of the clipped gradients. Steps compose by their RDP (Mironov
2017; Mironov, Talwar and Zhang 2019). All formulas are Opacus's. Neighbours are training sets that differ by one
example that is added or removed.
"""

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from fedddpm_app.config import Budget, Config, ConfigError, PrivatePhase
from fedddpm_app.training.declined import DeclinedError

DP_EPSILON, DP_EPSILON_TOTAL = "dp-epsilon", "dp-epsilon-total"  # metrics of a client's reply
_WITHOUT_NOISE = ("loss", "final-loss", "seconds")  # the last depends on the sizes of the batches
_LARGE_ORDERS = (64, 80, 96, 128, 192, 256, 512, 1024)  # Opacus's orders end at 63, too few for an epsilon below 0.2


Mechanism = PrivatePhase | Literal["client"]  # the last clips updates of clients instead of gradients


class PrivacyBudgetError(DeclinedError):
    """A client declines a training, because its budget does not suffice; the message is one sentence."""


@dataclass(frozen=True)
class Spent:
    """Steps of one mechanism.

    Attributes
    ----------
    phase : {"pretrain", "train", "client"}
        The phase that took them; "client": they are rounds.
    sample_rate : float
        q, the probability with which a step uses an example (a round a client), in (0, 1].
    noise_multiplier : float
        sigma, > 0: the noise's standard deviation over the clip.
    steps : int
        Optimiser steps, or rounds, >= 1.
    """

    phase: Mechanism
    sample_rate: float
    noise_multiplier: float
    steps: int


@dataclass(frozen=True)
class Privacy:
    """The mechanism of one private training, and what is spent after it.

    Attributes
    ----------
    sample_rate, noise_multiplier : float
        As in ``Spent``.
    clip : float
        The largest norm of an example's gradient.
    multiplicity : int
        Draws of the loss per example whose gradients are averaged before clipping.
    secret : bool
        Whether all random numbers come from the operating system, not from the run's seed.
    epsilon, total_epsilon : float
        What the client has spent with this training: in its phase, and in all private phases together.
    """

    sample_rate: float
    noise_multiplier: float
    clip: float
    multiplicity: int = 1
    secret: bool = True
    epsilon: float = 0.0
    total_epsilon: float = 0.0

    def metrics(self) -> dict[str, float]:
        """Return what the client reports of its privacy."""
        return {DP_EPSILON: self.epsilon, DP_EPSILON_TOTAL: self.total_epsilon}


def private_metrics(metrics: Sequence[str]) -> list[str]:
    """Return the names of the metrics of a private training: without those that have no noise."""
    return [*(name for name in metrics if name not in _WITHOUT_NOISE), DP_EPSILON, DP_EPSILON_TOTAL]


def epsilon_of(spent: Sequence[Spent], delta: float) -> float:
    """Return the epsilon of all steps together at ``delta``, by Opacus's RDP accountant; 0 without steps."""
    from opacus.accountants.analysis.rdp import get_privacy_spent

    if not spent:
        return 0.0
    rdp = sum(each.steps * _rdp_of_a_step(each.sample_rate, each.noise_multiplier) for each in spent)
    with warnings.catch_warnings():  # of a bound that more orders would make tighter
        warnings.filterwarnings("ignore", "Optimal order is")
        return float(get_privacy_spent(orders=_orders(), rdp=rdp, delta=delta)[0])


@functools.lru_cache(maxsize=256)
def _rdp_of_a_step(sample_rate: float, noise_multiplier: float) -> Any:
    """Return the RDP of one step at each of the orders; it takes most of an accountant's time."""
    from opacus.accountants.analysis.rdp import compute_rdp

    return compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=_orders())


@functools.lru_cache(maxsize=256)
def noise_multiplier_for(budget: Budget, sample_rate: float, steps: int) -> float:
    """Return a noise multiplier with which ``steps`` steps spend at most the budget, and at least 99 % of it.

    Raises
    ------
    PrivacyBudgetError
        If no noise suffices.
    """
    from opacus.accountants.utils import get_noise_multiplier

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Optimal order is")
            sigma: float = get_noise_multiplier(
                target_epsilon=budget.epsilon,
                target_delta=budget.delta,
                sample_rate=sample_rate,
                steps=steps,
                accountant="rdp",
                epsilon_tolerance=budget.epsilon / 100,
                alphas=_orders(),
            )
    except ValueError as error:
        raise PrivacyBudgetError(
            f"epsilon = {budget.epsilon} at delta = {budget.delta} cannot be reached by {steps} steps that each "
            f"sample with probability {sample_rate:.3g}: give it a larger epsilon, or fewer steps"
        ) from error
    return sigma


def check_opacus(key: str, value: float) -> None:
    """Raise ``ConfigError``, with the key that needs it, if Opacus is not installed."""
    if find_spec("opacus") is None:
        raise ConfigError(f'{key} = {value} needs Opacus on the server and on every client: pip install "opacus>=1.6".')


def _orders() -> list[float]:
    from opacus.accountants import RDPAccountant

    return [*RDPAccountant.DEFAULT_ALPHAS, *_LARGE_ORDERS]


def total_delta(config: Config) -> float:
    """Return the delta of the epsilon of both phases together: the larger one of the private phases."""
    budgets: Mapping[str, Budget] = {"pretrain": config.dp.pretrain, "train": config.dp.train}
    return max(budget.delta for budget in budgets.values() if budget.is_private)
