"""The keys of FedPhD: the hierarchy of edges, and the pruning of the model."""

from typing import ClassVar

from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import STRICT, CountOrZero, Decay, FloatOrZero, PositiveFloat, PositiveInt


@dataclass(frozen=True, config=STRICT)
class HierarchyConfig:
    """The edges between clients and cloud."""

    PREFIX: ClassVar[str] = ""
    num_edges: PositiveInt
    cloud_every: PositiveInt
    edge_homogeneity: PositiveFloat
    cloud_homogeneity: FloatOrZero


@dataclass(frozen=True, config=STRICT)
class PruneConfig:
    """The structured pruning, which happens once."""

    PREFIX: ClassVar[str] = "prune-"
    ratio: Decay
    round: CountOrZero
    penalty: FloatOrZero

    def is_sparse_round(self, server_round: int) -> bool:
        """Return whether clients add the sparse penalty in a round (from 1): those up to the pruning."""
        return self.ratio > 0 and self.penalty > 0 and server_round <= self.round
