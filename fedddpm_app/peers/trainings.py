"""The trainings of peers that are under way, which a resumed run sends again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedddpm_app.weights import Weights


@dataclass(frozen=True)
class Training:
    """A training that was started.

    Attributes
    ----------
    number : int
        That of the submission that it will be, from 1.
    parents : sequence of str
        The digests of the models that it starts from.
    end : float
        The time of the virtual clock at which it ends; 0 without that clock.
    start : Weights
        The weights that it starts from; their digest is ``digest``.
    """

    number: int
    parents: Sequence[str]
    end: float
    start: Weights
    digest: str


class Trainings(dict[int, Training]):
    """Trainings by peer."""

    def by_start(self, peers: Sequence[int]) -> list[list[int]]:
        """Return peers in groups that start from the same weights, each in the order of ``peers``."""
        groups: dict[str, list[int]] = {}
        for peer in peers:
            groups.setdefault(self[peer].digest, []).append(peer)
        return [*groups.values()]

    def state_dict(self) -> dict[str, object]:
        """Return the trainings, for a checkpoint; weights that several start from are in it once."""
        started = {peer: [t.number, [*t.parents], t.end, t.digest] for peer, t in self.items()}
        return {"started": started, "starts": {t.digest: dict(t.start) for t in self.values()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the trainings of a checkpoint."""
        self.clear()
        for peer, (number, parents, end, digest) in state["started"].items():
            self[peer] = Training(number, parents, end, state["starts"][digest], digest)
