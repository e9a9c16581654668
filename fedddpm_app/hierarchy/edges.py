"""The homogeneity of labels, the choice of an edge by a client, and the weights of the edges in the cloud.

Long et al. 2025, FedPhD, https://arxiv.org/abs/2507.06449. ``algorithms/fedphd.py`` has the symbols.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_LEAST = 1e-8  # an edge that has enough images is still chosen now and then

Counts = NDArray[np.int64]


def homogeneity(counts: ArrayLike) -> float:
    """Return SH(q) = 2 - ||q - q*||_2 of the distribution q of label counts, where q* is uniform.

    Parameters
    ----------
    counts : array_like
        Images per class, shape (C,). Without any image, q is q*.

    Returns
    -------
    float
        In (1, 2]; 2 for equal counts.
    """
    counts = np.asarray(counts, dtype=np.float64)
    uniform = np.full(len(counts), 1.0 / len(counts))
    shares = counts / counts.sum() if counts.sum() else uniform
    return float(2.0 - np.linalg.norm(shares - uniform))


@dataclass(frozen=True)
class EdgeStatistics:
    """The images of the clients that trained at each edge since the last merge in the cloud.

    Attributes
    ----------
    counts : ndarray of int64, shape (E, C)
        By edge and class; a client counts in each round in which it trains, if its images per class are known.
    images : ndarray of int64, shape (E,)
        By edge, n_e: the images of all its clients, added up over the rounds.
    latest : ndarray of int64, shape (E,)
        By edge, the images of its latest round with clients; 0 for an edge without clients since the merge.
    """

    counts: Counts
    images: Counts
    latest: Counts

    @classmethod
    def fresh(cls, num_edges: int, num_classes: int) -> "EdgeStatistics":
        """Return the statistics after a merge."""
        return cls(np.zeros((num_edges, num_classes), np.int64), *np.zeros((2, num_edges), np.int64))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "EdgeStatistics":
        """Return the statistics of ``state``."""
        return cls(*(np.asarray(state[name], np.int64) for name in ("counts", "images", "latest")))

    def state(self) -> dict[str, object]:
        """Return the statistics as lists of numbers."""
        return {name: getattr(self, name).tolist() for name in ("counts", "images", "latest")}

    def scores(self) -> list[float]:
        """Return SH of each edge; 1, its bound from below, if no client of the edge has revealed its labels."""
        return self._scores_of(self.counts)

    def probabilities(self, client: ArrayLike, c: float) -> NDArray[np.float64]:
        """Return P(e) ~ max(c SH(q_e + q_i) - n_e, 0) + 1e-8, the probability of each edge for a client.

        Parameters
        ----------
        client : array_like
            The client's images per class, shape (C,); zeros if they are not known.
        c : float
            In images, > 0: the weight of homogeneity against n_e, the edge's images so far.
        """
        joined = self.counts + np.asarray(client, np.int64)
        gains = c * np.array(self._scores_of(joined)) - self.images
        weights = np.maximum(gains, 0.0) + _LEAST
        probabilities: NDArray[np.float64] = weights / weights.sum()
        return probabilities

    def _scores_of(self, counts: NDArray[np.int64]) -> list[float]:
        known = zip(counts, self.images, strict=True)
        return [homogeneity(of_edge) if of_edge.any() or not images else 1.0 for of_edge, images in known]

    def after_round(
        self, joined: Mapping[int, tuple[Sequence[int], int]], edge_of: Mapping[int, int]
    ) -> "EdgeStatistics":
        """Return the statistics after a round.

        Parameters
        ----------
        joined : mapping
            By client, its images per class (zeros if they are not known) and its number of images.
        edge_of : mapping of int to int
            The edge of each client.
        """
        counts, round_images = self.counts.copy(), np.zeros_like(self.latest)
        for client, (per_class, num_images) in joined.items():
            counts[edge_of[client]] += np.asarray(per_class, np.int64)
            round_images[edge_of[client]] += num_images
        return EdgeStatistics(counts, self.images + round_images, np.where(round_images > 0, round_images, self.latest))

    def cloud_weights(self, a: float) -> dict[int, float]:
        """Return n + a SH_e by edge, the weights of a merge; an edge without clients since the last merge has none.

        Parameters
        ----------
        a : float
            In images, >= 0: the weight of homogeneity against n, the images of the edge's latest round with clients.
        """
        scores = self.scores()
        return {int(e): float(self.latest[e] + a * scores[e]) for e in np.flatnonzero(self.latest)}
