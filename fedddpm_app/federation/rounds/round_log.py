"""The line that a round writes to ``stats.jsonl``."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from flwr.app import MetricRecord
from torch import Tensor

from fedddpm_app.federation.accounting import Accounting, Span
from fedddpm_app.federation.messages.replies import Reply

_OF_THE_LINE = ("phase", "round", "clients", "absent")
_OF_THE_COST = ("comm/", "compute/", "time/", "mem/")


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
        """Start a round's line; ``clients`` are the sampled clients, ``absent`` those that are not connected.

        Values that were added before round 1 belong to no round: take them first.
        """
        self.server_round = server_round
        self.span = Span(self._accounting)
        self._stats = {"phase": "round", "round": server_round, "clients": [*clients]}
        if absent:
            self._stats["absent"] = [*absent]

    def add(self, stats: Mapping[str, object]) -> None:
        """Add values to the line: numbers, truth values, texts, None, and lists and mappings of them.

        Raises
        ------
        ValueError
            For a name that the line itself has, or that begins as those of its costs do.
        TypeError
            For a value that JSON cannot hold. A number of NumPy or torch, also an array of one, is a number.
        """
        for key, value in stats.items():
            if key in _OF_THE_LINE or key.startswith(_OF_THE_COST):
                raise ValueError(
                    f'record: "{key}" is a name of the app: {", ".join(_OF_THE_LINE)}, and names with '
                    f'{", ".join(_OF_THE_COST)} are taken; use another name, such as "my/{key.rpartition("/")[2]}".'
                )
            self._stats[key] = _plain(key, value)

    def take(self) -> dict[str, object]:
        """Return the values that were added before round 1, and empty the line."""
        stats, self._stats = self._stats, {}
        return stats

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


def _plain(key: str, value: object) -> object:
    """Return a value as JSON holds it."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, np.generic | np.ndarray | Tensor) and np.prod(value.shape) == 1:
        return _plain(key, value.item())
    if isinstance(value, Mapping):
        if odd := [name for name in value if not isinstance(name, str | int)]:
            raise TypeError(f"record: {key} has the name {odd[0]!r} in a mapping: use texts or whole numbers.")
        return {name: _plain(key, each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(key, each) for each in value]
    if isinstance(value, bool | int | float | str):  # of a subclass, such as an enum
        return value
    kind = type(value).__name__
    about = f"{kind} of shape {tuple(value.shape)}" if isinstance(value, np.ndarray | Tensor) else kind
    raise TypeError(
        f"record: {key} is a {about}: record numbers, texts, or lists and mappings of them (`tensor.tolist()`)."
    )
