"""The line that a round writes to ``stats.jsonl``."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from flwr.app import MetricRecord

from fedddpm_app.federation.accounting import Accounting, Span
from fedddpm_app.federation.messages.replies import Reply


class RoundLog:
    """Collects the values of the current round's line.

    Parameters
    ----------
    accounting : Accounting
        Counts the round's cost.

    Attributes
    ----------
    server_round : int
        The current round, from 1; 0 before the first.
    span : Span
        The round's cost so far.
    """

    def __init__(self, accounting: Accounting) -> None:
        self.server_round = 0
        self.span = Span(accounting)
        self._accounting = accounting
        self._stats: dict[str, object] = {}

    def begin(self, server_round: int, clients: Sequence[int], absent: Sequence[int]) -> None:
        """Start a round's line; ``clients`` are the sampled clients, ``absent`` those that are not connected."""
        self.server_round = server_round
        self.span = Span(self._accounting)
        self._stats = {"phase": "round", "round": server_round, "clients": [*clients]}
        if absent:
            self._stats["absent"] = [*absent]

    def add(self, stats: Mapping[str, object]) -> None:
        """Add values to the line."""
        self._stats |= stats

    def add_replies(self, replies: Sequence[Reply], metrics: MetricRecord) -> None:
        """Add the losses of the clients' training; ``metrics`` are their means, weighted by examples.

        Clients that train privately report no losses; with secure aggregation, the single ones are not known.
        """
        if "loss" in metrics:
            self.add({"train/loss": metrics["loss"], "train/final_loss": metrics["final-loss"]})
        of_clients = {str(reply.partition_id): reply.number("loss") for reply in replies if "loss" in reply.metrics}
        self.add({"train/client_loss": of_clients} if of_clients else {})
        self.add({"train/num_examples": sum(reply.num_examples for reply in replies)})

    @contextmanager
    def own_phase(self) -> Iterator[Span]:
        """Yield a span for the body, whose cost is not counted in the round's line."""
        span = Span(self._accounting)
        yield span
        self.span.exclude(span)

    def close(self) -> dict[str, object]:
        """Return the line, with the round's cost."""
        return self._stats | self.span.spent("time/round_s")
