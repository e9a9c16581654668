"""The lines of a sweep in a grid's results: a metric over the values of its key."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedddpm_app.compare.looks import Results


def sweep_line(results: Results, metric: str, condition: str, row: str) -> list[tuple[Any, Mapping[str, Any]]]:
    """Return the values of the key that a row has the metric for, and the metric over the seeds of each.

    A row that does not use the key has the same metric for all values.
    """
    settings = [each for each in results["settings"] if (each["row"], each["condition"]) == (row, condition)]
    by_value = {next(iter(each["sweep"].values()), None): each["metrics"].get(metric) for each in settings}
    found = [(value, by_value.get(value, by_value.get(None))) for value in results["grid"]["sweep"]["values"]]
    return [(value, measured) for value, measured in found if measured and measured["n"]]


def uses_key(results: Results, row: str) -> bool:
    """Return whether a row has lines for the values of the sweep's key."""
    return any(each["sweep"] for each in results["settings"] if each["row"] == row)


def are_numbers(values: Sequence[Any]) -> bool:
    """Return whether values of a key are numbers, which have their places on an axis."""
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
