"""Differential privacy at the level of a client: the clipped and noisy mean of a round's updates.

    Sample      each client takes part in a round with probability q (Poisson sampling)
    Clip        d_i <- d_i min(1, S / ||d_i||), d_i = w_i - w
    Mean        w <- w + (sum_i d_i + N(0, z^2 S^2 I)) / (q N)
    Adapt       S <- S exp(-0.2 (b - g)), b = 1/2 + (sum_i ([||d_i|| <= S] - 1/2) + N(0, s^2)) / (q N)

McMahan et al. 2018 (https://arxiv.org/abs/1710.06963), with equal weights; Andrew et al. 2021
(https://arxiv.org/abs/1905.03871), Algorithm 1, for the clip that follows a quantile g of the norms. The count then
takes a part of the budget: z = (m^-2 - (2 s)^-2)^(-1/2), where m is the noise multiplier that the accountant gives
(Opacus's, see ``training.privacy``). Symbols: S -> clip, z -> noise_multiplier, s -> count_noise, N -> num_clients.
"""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from fedddpm_app.config import Config, ConfigError
from fedddpm_app.federation.ports import Recorder
from fedddpm_app.federation.privacy.mean_only import check_needs_the_mean
from fedddpm_app.seeding import derive_seed
from fedddpm_app.training.privacy import PrivacyBudgetError, Spent, check_opacus, epsilon_of, noise_multiplier_for
from fedddpm_app.training.privacy_ledger import added
from fedddpm_app.training.secret import secret_choice, secret_normal
from fedddpm_app.weights import Weights

if TYPE_CHECKING:
    from fedddpm_app.federation.description import AlgorithmDescription

ACCOUNT = "client-privacy.jsonl"
_RATE = 0.2  # of the clip's adaptation; Andrew et al. recommend it for all tasks
_COUNT_SHARE = 20  # the count has noise of q N / 20, or more where few clients need more


def sample_rate(config: Config) -> float:
    """Return q: ``clients-per-round`` over ``num-clients``; 1 if all clients take part."""
    return (config.run.clients_per_round or config.data.num_clients) / config.data.num_clients


def planned_noise(config: Config) -> float:
    """Return the accountant's noise multiplier with which all rounds together spend the budget.

    Raises
    ------
    PrivacyBudgetError
        If no noise suffices.
    """
    return noise_multiplier_for(config.client_dp.budget, sample_rate(config), config.run.num_rounds)


def check_clients_private(algorithm: "type[AlgorithmDescription]", config: Config) -> None:
    """Raise ``ConfigError`` if a run that asks for privacy of clients would use what has no noise."""
    budget = config.client_dp.budget
    if not budget.is_private:
        return
    given, name = f"client-dp-epsilon = {budget.epsilon}", f'algorithm = "{config.run.algorithm}"'
    check_opacus("client-dp-epsilon", budget.epsilon)
    if not algorithm.trains_on_clients:
        raise ConfigError(f"{given}: {name} has no local rounds that could be private; use 0.0.")
    if algorithm.client_actions:
        raise ConfigError(
            f"{given}: {name} asks its clients for {', '.join(algorithm.client_actions)}, and what it computes from "
            'the answers has no noise; use "fedavg", "fedprox" or "moon", or 0.0.'
        )
    check_needs_the_mean(algorithm, config, given, "0.0")
    try:
        planned_noise(config)
    except PrivacyBudgetError as error:
        raise ConfigError(f"{given}: {error}.") from error


def notes_on_clients(config: Config) -> list[str]:
    """Return what a user of a run with privacy of clients should know at its start."""
    if not config.client_dp.budget.is_private:
        return []
    return [
        "client-dp-epsilon protects a client from those who get the global model; the server sees every update, and "
        "its stats.jsonl has losses without noise",
        "the noise and the choice of clients come from the operating system: the run cannot be repeated"
        if config.dp.dp_secret_noise
        else "dp-secret-noise = false: the guarantee of privacy holds only against those who do not know the seed",
    ]


class ClientPrivacy:
    """The mechanism, its clip, and the account of the rounds whose weights have left the server.

    Parameters
    ----------
    config : Config
        The run's config, with a budget for clients.
    recorder : Recorder
        Keeps the account. It only grows: a round that is computed again is spent again.

    Attributes
    ----------
    clip : float
        S of the next round.
    """

    def __init__(self, config: Config, recorder: Recorder) -> None:
        self._config, self._recorder = config, recorder
        self.clip = config.client_dp.clip
        self._spent: list[Spent] | None = None

    @property
    def expected(self) -> float:
        """The number of clients that a round expects, q N."""
        return sample_rate(self._config) * self._config.data.num_clients

    @property
    def count_noise(self) -> float:
        """The standard deviation of the noise of the count of small updates; infinite with a fixed clip."""
        if not self._config.client_dp.quantile:
            return math.inf
        return max(self.expected / _COUNT_SHARE, planned_noise(self._config))

    @property
    def noise_multiplier(self) -> float:
        """The standard deviation of the noise of the sum over the clip."""
        return float((planned_noise(self._config) ** -2 - (2 * self.count_noise) ** -2) ** -0.5)

    def sample(self, present: Iterable[int], server_round: int, attempt: int) -> list[int]:
        """Return the clients of a round: each takes part with probability q, whether it is present or not."""
        count, rate = self._config.data.num_clients, sample_rate(self._config)
        if self._config.dp.dp_secret_noise:
            draws = secret_choice(count, rate)
        else:
            generator = self._generator("sample", server_round, attempt)
            draws = torch.rand(count, generator=generator, dtype=torch.float64) < rate
        return [partition for partition in present if draws[partition]]

    @property
    def _step(self) -> Spent:
        return Spent("client", sample_rate(self._config), planned_noise(self._config), 1)

    def check_next(self) -> None:
        """Raise ``ValueError`` if one more round would spend more than the budget."""
        self._after_next()

    def _after_next(self) -> tuple[list[Spent], float]:
        """Return the account with one more round, and its epsilon."""
        after, budget = added(self._account(), self._step), self._config.client_dp.budget
        epsilon = epsilon_of(after, budget.delta)
        if epsilon > budget.epsilon:
            count = sum(each.steps for each in after) - 1
            raise ValueError(
                f"one more round after {count} would spend epsilon = {epsilon:.3f}, but client-dp-epsilon = "
                f"{budget.epsilon}: the budget is spent"
            )
        return after, epsilon

    def spend(self, server_round: int) -> float:
        """Write down a round before its weights are known, and return the epsilon of all rounds so far.

        Raises
        ------
        ValueError
            If that would be more than the budget; then nothing is written.
        """
        after, epsilon = self._after_next()
        step = self._step
        entry = {"round": server_round, "sample_rate": step.sample_rate, "noise_multiplier": step.noise_multiplier}
        self._recorder.append_to(ACCOUNT, entry)
        self._spent = after
        return epsilon

    def noisy_sum(self, total: Weights, server_round: int) -> Weights:
        """Return a sum of clipped updates with noise; float64."""
        scale, generator = self.noise_multiplier * self.clip, self._generator("noise", server_round)
        return {name: tensor + scale * self._normal(tensor.shape, generator) for name, tensor in total.items()}

    def adapt(self, num_small: int, num_replies: int, server_round: int) -> None:
        """Move the clip towards the quantile of the norms: ``num_small`` of the updates were not clipped."""
        if not self._config.client_dp.quantile:
            return
        noise = self.count_noise * float(self._normal((), self._generator("count", server_round)))
        share = 0.5 + (num_small - 0.5 * num_replies + noise) / self.expected
        self.clip *= math.exp(-_RATE * (share - self._config.client_dp.quantile))

    def summary(self) -> dict[str, object]:
        """Return what the run has spent, for ``summary.json``; empty without a budget."""
        delta = self._config.client_dp.delta
        if not self._config.client_dp.budget.is_private:
            return {}
        return {"client-dp/epsilon": epsilon_of(self._account(), delta), "client-dp/delta": delta}

    def state_dict(self) -> dict[str, object]:
        """Return the state for a checkpoint; of the account only its length, because no checkpoint brings it back."""
        spent = self._account() if self._config.client_dp.budget.is_private else []
        return {"clip": self.clip, "rounds": sum(each.steps for each in spent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with a checkpoint.

        Raises
        ------
        ConfigError
            If lines of the account are lost.
        """
        self.clip, known = float(state["clip"]), int(state["rounds"])
        if known and (found := sum(each.steps for each in self._account())) < known:
            raise ConfigError(
                f"resume: {ACCOUNT} of the run has {found} rounds, but its checkpoint knows of {known} that have spent "
                "of client-dp-epsilon: restore the file from a backup, or start a new run."
            )

    def _account(self) -> list[Spent]:
        if self._spent is None:
            self._spent = []
            for row in self._recorder.entries_of(ACCOUNT):
                step = Spent("client", float(row["sample_rate"]), float(row["noise_multiplier"]), 1)
                self._spent = added(self._spent, step)
        return self._spent

    def _generator(self, purpose: str, *indices: int) -> torch.Generator:
        """Return a generator of the run's seed."""
        return torch.Generator().manual_seed(derive_seed(self._config.run.seed, f"client-dp-{purpose}", *indices))

    def _normal(self, shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        """Return standard normal numbers, float64: secret ones, or, for tests, those of the generator."""
        if self._config.dp.dp_secret_noise:
            return secret_normal(shape)
        return torch.randn(shape, generator=generator, dtype=torch.float64)
