"""The privacy that a private training spends: Opacus's accountant of Renyi differential privacy (RDP), and a ledger.

One step is the subsampled Gaussian mechanism: each example takes part with probability q (Poisson sampling), and noise
of standard deviation sigma * clip is added to the sum of the clipped gradients. Steps compose by their RDP (Mironov
2017; Mironov, Talwar and Zhang 2019). All formulas are Opacus's. Neighbours are data sets that differ by one example
that is added or removed.

A step is spent as soon as it may be taken: a reply that gets lost, a round that is repeated, and a run that is resumed
from an earlier round give nothing back. So the steps are written to a file at the client before they are taken, and
no checkpoint brings an earlier file back.
"""

import functools
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from fedddpm_app.config import Budget, Config, ConfigError, PrivatePhase
from fedddpm_app.disk.durable import replacing
from fedddpm_app.disk.private import private_folder
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


class Ledger:
    """One client's steps in one run, in a JSON file that only grows.

    Parameters
    ----------
    path : Path
        The file; it is created with its folder, and locked while it is changed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Spent]:
        """Return the steps so far, one entry for each phase and mechanism; empty without a file.

        Raises
        ------
        PrivacyBudgetError
            If the file is damaged.
        """
        try:
            rows: Any = json.loads(self.path.read_text(encoding="utf-8"))
            return [Spent(**row) for row in rows["spent"]]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, LookupError) as error:
            raise PrivacyBudgetError(
                f"its record of spent privacy cannot be read ({type(error).__name__}): restore {self.path.name} from a "
                "backup, or leave the client out"
            ) from error

    def spend(self, steps: Spent, budget: Budget) -> list[Spent]:
        """Add steps before they are taken, and return all steps.

        Raises
        ------
        PrivacyBudgetError
            If the phase would spend more than its budget; then nothing is added.
        """
        private_folder(self.path.parent)
        with FileLock(self.path.with_suffix(".lock"), mode=0o600):
            after = added(self.read(), steps)
            phase = [each for each in after if each.phase == steps.phase]
            epsilon = epsilon_of(phase, budget.delta)
            if epsilon > budget.epsilon:
                taken = sum(each.steps for each in phase) - steps.steps
                raise PrivacyBudgetError(
                    f"{steps.steps} more private steps after {taken} would spend epsilon = {epsilon:.3f}, but "
                    f"{steps.phase}-dp-epsilon = {budget.epsilon}: its budget is spent"
                )
            with replacing(self.path) as work:
                work.write_text(json.dumps({"spent": [asdict(each) for each in after]}), encoding="utf-8")
        return after


def added(spent: Sequence[Spent], steps: Spent) -> list[Spent]:
    """Return the entries with ``steps`` added to that of the same mechanism, so sums do not depend on rounds."""
    counts: dict[tuple[Mechanism, float, float], int] = {}
    for each in [*spent, steps]:
        key = (each.phase, each.sample_rate, each.noise_multiplier)
        counts[key] = counts.get(key, 0) + each.steps
    return [Spent(*key, count) for key, count in counts.items()]


def begin(
    config: Config, phase: PrivatePhase, ledger: Ledger | None, *, num_examples: int, steps: int, planned: int
) -> Privacy | None:
    """Spend the privacy of a training that is about to start; None for a phase without a guarantee.

    Parameters
    ----------
    config : Config
        The run's config, with the budget of the phase.
    phase : {"pretrain", "train"}
        The phase.
    ledger : Ledger or None
        The client's ledger; a private phase needs it.
    num_examples : int
        n_i, which counts as public.
    steps, planned : int
        The steps of this training, and those of the whole phase, from which the noise is solved.

    Raises
    ------
    PrivacyBudgetError
        If the budget does not suffice.
    """
    budget = config.dp.of(phase)
    if not budget.is_private:
        return None
    if ledger is None:
        raise RuntimeError(f"{phase}-dp-epsilon = {budget.epsilon}: a private training needs a ledger")
    check_opacus(f"{phase}-dp-epsilon", budget.epsilon)
    if budget.delta * num_examples >= 1:
        raise PrivacyBudgetError(
            f"{phase}-dp-delta = {budget.delta} protects no single one of its {num_examples} images: use a delta below "
            f"{1 / num_examples:.1e}"
        )
    rate = min(1.0, (config.training.batch_size or num_examples) / num_examples)
    sigma = noise_multiplier_for(budget, rate, planned)
    spent = ledger.spend(Spent(phase, rate, sigma, steps), budget)
    dp = config.dp
    return Privacy(
        sample_rate=rate,
        noise_multiplier=sigma,
        clip=dp.dp_clip,
        multiplicity=dp.dp_noise_multiplicity,
        secret=dp.dp_secret_noise,
        epsilon=epsilon_of([each for each in spent if each.phase == phase], budget.delta),
        total_epsilon=epsilon_of(spent, total_delta(config)),
    )


def total_delta(config: Config) -> float:
    """Return the delta of the epsilon of both phases together: the larger one of the private phases."""
    budgets: Mapping[str, Budget] = {"pretrain": config.dp.pretrain, "train": config.dp.train}
    return max(budget.delta for budget in budgets.values() if budget.is_private)
