"""The line of ``stats.jsonl`` that a round leaves."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from fedddpm_app.federation.accounting import Accounting, Mark


class RoundLog:
    """Gathers the figures of the current round.

    Parameters
    ----------
    accounting : Accounting
        What the round spends is read off it.
    """

    def __init__(self, accounting: Accounting) -> None:
        self._accounting = accounting
        self._figures: dict[str, object] = {}
        self.mark = Mark(accounting)

    def begin(self, server_round: int, clients: Sequence[int], absent: Sequence[int]) -> None:
        """Start a round's line; ``clients`` are those that are asked, ``absent`` those that are not connected."""
        self.mark = Mark(self._accounting)
        self._figures = {"phase": "round", "round": server_round, "clients": [*clients]}
        if absent:
            self._figures["absent"] = [*absent]

    def add(self, figures: Mapping[str, object]) -> None:
        """Add figures to the line."""
        self._figures |= figures

    @contextmanager
    def own_phase(self) -> Iterator[Mark]:
        """Give a mark of the body's own: what it spends is left out of the round's line."""
        mark = Mark(self._accounting)
        yield mark
        self.mark.leave_out(mark)

    def close(self) -> dict[str, object]:
        """Return the line, with what the round spent."""
        return self._figures | self.mark.since("time/round_s")
