"""The line that a round writes to ``stats.jsonl``."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from flwr.app import MetricRecord
from torch import Tensor

from fedddpm_app.federation.accounting import COST_KEYS, Accounting, Span
from fedddpm_app.federation.messages.replies import Reply

_TOTAL = "time/round_s"
_OF_THE_APP = ("phase", "round", "clients", "absent", *COST_KEYS, _TOTAL, "mem/peak_rss_mb")
_MOST_NUMBERS = 10_000  # of an array: a line is no place for weights


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
            For a name that the app writes itself.
        TypeError
            For a value that JSON cannot hold. A number of NumPy or torch is a number, also as an array of one; an array
            is a list, with at most 10,000 numbers.
        """
        for key, value in stats.items():
            if key in _OF_THE_APP:
                fix = f'use another one, such as "my/{key.rpartition("/")[2]}"'
                raise ValueError(f'record: "{key}" is a name that the app writes itself: {fix}.')
            self._stats[key] = _plain(key, value)

    def state_dict(self) -> dict[str, object]:
        """Return the values that were added before round 1, for a checkpoint; empty in a round."""
        return {"stats": {} if self.server_round else self._stats}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with the values of a checkpoint."""
        self._stats = {**state["stats"]}

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
        return self._stats | self.span.spent(_TOTAL)


def _plain(key: str, value: object) -> object:
    """Return a value as JSON holds it."""
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, np.generic)):
        return value
    if isinstance(value, np.generic | np.ndarray | Tensor) and np.prod(value.shape) == 1:
        return _plain(key, value.item())
    if isinstance(value, np.ndarray | Tensor) and np.prod(value.shape) <= _MOST_NUMBERS:
        return _plain(key, value.tolist())
    if isinstance(value, Mapping):
        return {_name(key, name): _plain(key, each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(key, each) for each in value]
    kind = type(value).__name__
    about = f"{kind} of shape {tuple(value.shape)}" if isinstance(value, np.ndarray | Tensor) else kind
    raise TypeError(f"record: {key} is a {about}: record numbers, texts, or lists and mappings of them.")


def _name(key: str, name: object) -> str | float | None:
    """Return a name of a mapping, which JSON makes a text."""
    plain = _plain(key, name)
    if not isinstance(plain, str | int | float | None):
        raise TypeError(f"record: {key} has the name {name!r} in a mapping: use texts or numbers.")
    return plain
