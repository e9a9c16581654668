"""Private runs on the server: what they refuse, what they note at the start, and the epsilons that clients report."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedddpm_app.config import Config, ConfigError
from fedddpm_app.federation.messages.replies import Reply
from fedddpm_app.training.privacy import DP_EPSILON, DP_EPSILON_TOTAL, check_opacus, total_delta

if TYPE_CHECKING:
    from fedddpm_app.federation.description import AlgorithmDescription


def is_private(algorithm: "type[AlgorithmDescription]", config: Config) -> bool:
    """Return whether any training of a run's clients has a guarantee."""
    return config.dp.train.is_private or (
        config.dp.pretrain.is_private and "pretrain-dp-epsilon" not in algorithm.keys_without_effect(config)
    )


def check_private(algorithm: "type[AlgorithmDescription]", config: Config) -> None:
    """Raise ``ConfigError`` if a run that asks for privacy would send what has none."""
    if not is_private(algorithm, config):
        return
    train, pretrain = config.dp.train, config.dp.pretrain
    key, epsilon = ("train", train.epsilon) if train.is_private else ("pretrain", pretrain.epsilon)
    given, name = f"{key}-dp-epsilon = {epsilon}", f'algorithm = "{config.run.algorithm}"'
    check_opacus(f"{key}-dp-epsilon", epsilon)
    if open_actions := [action for action, each in algorithm.client_actions.items() if not each.is_private]:
        raise ConfigError(
            f"{given}: {name} asks its clients for {', '.join(open_actions)}, which depends on their images without "
            "noise; use another algorithm, or 0.0."
        )
    if pretrain.is_private and config.data.class_conditional:
        raise ConfigError(
            f"pretrain-dp-epsilon = {pretrain.epsilon}: with class-conditional = true clients send their number of "
            "images per class, without noise; use class-conditional = false, or 0.0."
        )
    if train.is_private:
        _check_rounds(algorithm, config, f"{given}: {name}")


def _check_rounds(algorithm: "type[AlgorithmDescription]", config: Config, what: str) -> None:
    """Raise ``ConfigError`` if the local rounds cannot be private."""
    if not algorithm.trains_on_clients:
        raise ConfigError(f"{what} has no local rounds that could be private; use 0.0.")
    answers = "why_not_private" in vars(algorithm.hook)
    why = f"{algorithm.hook.__name__} does not define why_not_private"
    why = algorithm.hook.why_not_private(config) if answers else why
    if why:
        raise ConfigError(f"{what} cannot be private: {why}; or use another algorithm, or 0.0.")


def notes_on_privacy(config: Config, *, trains: bool, pretrains: bool) -> list[str]:
    """Return what a user of a private run should know at its start.

    Parameters
    ----------
    config : Config
        The run's config.
    trains, pretrains : bool
        Whether clients send weights of rounds, and models of their own.
    """
    dp = config.dp
    if not ((trains and dp.train.is_private) or (pretrains and dp.pretrain.is_private)):
        return []
    notes = []
    for sends, budget, key, what in (
        (trains, dp.train, "train-dp-epsilon", "the weights of the local rounds"),
        (pretrains, dp.pretrain, "pretrain-dp-epsilon", "the pretrained models"),
    ):
        if sends and not budget.is_private:
            notes.append(
                f"{key} = 0: {what} have no guarantee of privacy, and so the run as a whole has none; set {key} too"
            )
    notes.append(
        "private noise and sampling come from the operating system: the run cannot be repeated"
        if dp.dp_secret_noise
        else "dp-secret-noise = false: the guarantee of privacy holds only against those who do not know the seed"
    )
    notes.append("a private run has no losses of clients; in private trainings dp-clip replaces gradient-clip")
    return notes


class Spending:
    """The privacy that clients have spent, as far as their replies say.

    Attributes
    ----------
    epsilon : dict of str to dict of int to float
        By phase (``pretrain``, ``train``, and ``total`` for both together) and partition.
    """

    def __init__(self) -> None:
        self.epsilon: dict[str, dict[int, float]] = {"pretrain": {}, "train": {}, "total": {}}

    def state_dict(self) -> dict[str, object]:
        """Return the state for a checkpoint."""
        return {phase: dict(clients) for phase, clients in self.epsilon.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with a checkpoint; later replies have what was spent since then."""
        self.epsilon = {phase: {int(client): float(e) for client, e in of.items()} for phase, of in state.items()}

    def add(self, replies: Sequence[Reply]) -> dict[str, object]:
        """Add what replies of a round report; return the values for its line in ``stats.jsonl``, empty without any."""
        for phase, key in (("train", DP_EPSILON), ("total", DP_EPSILON_TOTAL)):
            found = {reply.partition_id: reply.number(key) for reply in replies}
            self.know(phase, {client: epsilon for client, epsilon in found.items() if not math.isnan(epsilon)})
        return self.of("train") | self.of("total")

    def know(self, phase: str, epsilon: Mapping[int, float]) -> None:
        """Take over the epsilons of clients, which only grow; what one phase spends is spent in total at least."""
        for known in (self.epsilon[phase], self.epsilon["total"]):
            known |= {client: max(value, known.get(client, 0.0)) for client, value in epsilon.items()}

    def of(self, phase: str) -> dict[str, object]:
        """Return the epsilons of a phase so far, for ``stats.jsonl``; empty if none is known."""
        found = self.epsilon[phase]
        if not found:
            return {}
        by_client = {str(client): epsilon for client, epsilon in sorted(found.items())}
        return {f"{phase}/dp_epsilon": by_client, f"{phase}/dp_epsilon_max": max(found.values())}

    def summary(self, config: Config) -> dict[str, object]:
        """Return the largest epsilons, for ``summary.json``; empty for a run that is not private."""
        largest = {f"{phase}/dp_epsilon": max(found.values()) for phase, found in self.epsilon.items() if found}
        if not largest:
            return {}
        deltas = {
            f"{phase}/dp_delta": budget.delta
            for phase, budget in (("pretrain", config.dp.pretrain), ("train", config.dp.train))
            if budget.is_private
        }
        return {**largest, **deltas, "total/dp_delta": total_delta(config)}
