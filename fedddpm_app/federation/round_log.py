"""The line of ``stats.jsonl`` that a round leaves."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from fedddpm_app.federation.accounting import Accounting, Span


class RoundLog:
    """Gathers what the current round leaves.

    Parameters
    ----------
    accounting : Accounting
        What the round spends is read off it.
    """

    def __init__(self, accounting: Accounting) -> None:
        self._accounting = accounting
        self._stats: dict[str, object] = {}
        self.span = Span(accounting)

    def begin(self, server_round: int, clients: Sequence[int], absent: Sequence[int]) -> None:
        """Start a round's line; ``clients`` are those that are asked, ``absent`` those that are not connected."""
        self.span = Span(self._accounting)
        self._stats = {"phase": "round", "round": server_round, "clients": [*clients]}
        if absent:
            self._stats["absent"] = [*absent]

    def add(self, stats: Mapping[str, object]) -> None:
        """Add values to the line."""
        self._stats |= stats

    @contextmanager
    def own_phase(self) -> Iterator[Span]:
        """Yield a span of the body's own: what it spends is left out of the round's line."""
        span = Span(self._accounting)
        yield span
        self.span.exclude(span)

    def close(self) -> dict[str, object]:
        """Return the line, with what the round spent."""
        return self._stats | self.span.spent("time/round_s")
