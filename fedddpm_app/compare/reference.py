"""The reference of a grid in its results: the row that the others are compared with, and the floor of real images."""

import math

from fedddpm_app.compare.looks import Results
from fedddpm_app.compare.sweep import uses_key


def is_swept(results: Results) -> bool:
    """Return whether the reference has a line for each value of a sweep; other rows are compared value by value."""
    return uses_key(results, results["reference"])


def compared_to(results: Results) -> str:
    """Return the name of what the differences of the other rows are to."""
    same = f" with the same {results['grid']['sweep']['key']}" if is_swept(results) else ""
    return f"{results['reference']}{same}"


def reference_mean(results: Results, metric: str, condition: str) -> float | None:
    """Return the reference's mean in a condition; None if it has none, or one for each value of a sweep."""
    return _known(results, metric, condition, "mean", results["reference"])


def floor_of(results: Results, metric: str, condition: str) -> float | None:
    """Return the metric of real images in a condition; None if no row has it."""
    of_reference = _known(results, metric, condition, "floor", results["reference"])
    return _known(results, metric, condition, "floor") if of_reference is None else of_reference


def _known(results: Results, metric: str, condition: str, key: str, row: str = "") -> float | None:
    """Return the first finite value of a condition's settings; with ``row``, of this row without a sweep."""
    for each in results["settings"]:
        wanted = not row or (each["row"] == row and not each["sweep"])
        value = each["metrics"].get(metric, {}).get(key) if wanted and each["condition"] == condition else None
        if value is not None and math.isfinite(value):
            return float(value)
    return None


def limits_of(results: Results, label: str, condition: str, metric: str) -> list[float]:
    """Return the interval of a line's difference to the reference, from the reference's mean; empty without one.

    If one of the two has seeds that the other lacks, the means do not belong to the difference, and there is none.
    """
    settings = [each for each in results["settings"] if each["condition"] == condition and metric in each["metrics"]]
    of_line = next((each for each in settings if each["label"] == label), None)
    others = [each for each in settings if each["row"] == results["reference"]]
    reference = next((e for e in others if not e["sweep"] or (of_line and e["sweep"] == of_line["sweep"])), None)
    if of_line is None or reference is None:
        return []
    found, base = (each["metrics"][metric] for each in (of_line, reference))
    difference = found["differences"].get(results["reference"])
    if difference is None or difference["low"] is None or not difference["n"] == found["n"] == base["n"]:
        return []
    return [base["mean"] + difference[key] for key in ("low", "high")]
