"""The check of a reply's metrics, which bounds what a client may send: the declared ones, and a few others."""

import math
from collections.abc import Iterator, Mapping, Sequence

from flwr.app import MetricRecord, MetricRecordValues

from fedddpm_app.federation.messages.records import NUM_EXAMPLES, SERVER_ROUND
from fedddpm_app.limits import LARGEST_METRIC, LARGEST_NUMBER, LONGEST_VALUE, MOST_METRIC_NUMBERS, MOST_METRICS


def problem_of(
    metrics: MetricRecord, server_round: int, numbers: Sequence[str], lists: Mapping[str, int], counts_examples: bool
) -> str:
    """Return why metrics cannot be accepted; empty if they can.

    Parameters
    ----------
    metrics : MetricRecord
        All metrics of a reply.
    server_round : int
        The round that it must answer.
    numbers : sequence of str
        The names of the declared numbers.
    lists : mapping of str to int
        The names of the declared lists of numbers, with their lengths.
    counts_examples : bool
        Whether it must have ``num-examples``.
    """
    declared = {SERVER_ROUND, NUM_EXAMPLES, *numbers, *lists}
    for found in (
        _wrong_round(metrics.get(SERVER_ROUND), server_round),
        _too_many({key: value for key, value in metrics.items() if key not in declared}),
        _wrong_form(metrics, numbers, lists, counts_examples),
        _wrong_values(metrics, {*numbers, *lists}),
    ):
        if problem := next(found, ""):
            return problem
    return ""


def _wrong_round(answered: object, server_round: int) -> Iterator[str]:
    if answered is None:
        yield f"it does not say which round it answers: it has no metric {SERVER_ROUND}"
    elif answered != server_round:
        yield f"it answers round {_quoted(answered)}, not round {server_round}"


def _too_many(others: Mapping[str, MetricRecordValues]) -> Iterator[str]:
    """Check the metrics that are not declared, before any other look at them."""
    count = sum(len(_numbers_of(value)) for value in others.values())
    too_long = any(len(key) > LONGEST_VALUE for key in others)
    if len(others) > MOST_METRICS or count > MOST_METRIC_NUMBERS or too_long:
        yield (
            f"its {len(others)} metrics that are not declared have {count} numbers: at most {MOST_METRICS} metrics "
            f"with {MOST_METRIC_NUMBERS} numbers, and names of {LONGEST_VALUE} characters, are accepted"
        )


def _wrong_form(
    metrics: MetricRecord, numbers: Sequence[str], lists: Mapping[str, int], counts_examples: bool
) -> Iterator[str]:
    count = metrics.get(NUM_EXAMPLES)
    if counts_examples and (not isinstance(count, int) or count < 1):
        yield f"{NUM_EXAMPLES} is {_quoted(count)}, not a positive whole number"
    for key in numbers:
        if not isinstance(metrics.get(key), int | float):
            yield f"metric {key} is {_quoted(metrics.get(key))}, not a number"
    for key, length in lists.items():
        values = metrics.get(key)
        if not isinstance(values, list) or len(values) != length:
            yield f"metric {key} is not a list of {length} numbers"


def _wrong_values(metrics: MetricRecord, averaged: set[str]) -> Iterator[str]:
    for key, value in metrics.items():
        most, numbers = LARGEST_METRIC if key in averaged else LARGEST_NUMBER, _numbers_of(value)
        if not all(abs(number) < most for number in numbers):
            large = f", which is not between -{most:.0e} and {most:.0e}" if all(map(math.isfinite, numbers)) else ""
            large += ": a loss of this size means that its training diverged" if large and key in averaged else ""
            yield f"metric {key} is {_quoted(value)}{large}"


def _numbers_of(value: MetricRecordValues) -> Sequence[float]:
    return value if isinstance(value, list) else [value]


def _quoted(value: object) -> str:
    return str(value[:LONGEST_VALUE] if isinstance(value, list) else value)[:LONGEST_VALUE]
