"""The account of the privacy that a client has spent in a run.

A step is spent as soon as it may be taken: a reply that gets lost, a round that is repeated, and a run that is resumed
from an earlier round give nothing back. So the steps are written to a file at the client before they are taken, and
no checkpoint brings an earlier file back.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from fedddpm_app.config import Budget, Config, PrivatePhase
from fedddpm_app.disk.durable import replacing
from fedddpm_app.disk.private import private_folder
from fedddpm_app.training.privacy import (
    Mechanism,
    Privacy,
    PrivacyBudgetError,
    Spent,
    check_opacus,
    epsilon_of,
    noise_multiplier_for,
    total_delta,
)


class PrivacyLedger:
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
    config: Config, phase: PrivatePhase, ledger: PrivacyLedger | None, *, num_examples: int, steps: int, planned: int
) -> Privacy | None:
    """Spend the privacy of a training that is about to start; None for a phase without a guarantee.

    Parameters
    ----------
    config : Config
        The run's config, with the budget of the phase.
    phase : {"pretrain", "train"}
        The phase.
    ledger : PrivacyLedger or None
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
        multiplicity=dp.draws(phase),
        secret=dp.dp_secret_noise,
        epsilon=epsilon_of([each for each in spent if each.phase == phase], budget.delta),
        total_epsilon=epsilon_of(spent, total_delta(config)),
    )
