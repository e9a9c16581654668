"""Numbers and ranges of a grid's results as texts."""

import math
from collections.abc import Sequence

_DIGITS = 3


def number(value: float | None, like: float | None = None) -> str:
    """Return a number with 3 significant digits, without exponent for usual sizes.

    With ``like``, it has as many decimal places as that number has, or as its own first digit needs; a zero has none
    of its own.
    """
    if value is None or not math.isfinite(value):
        return "not defined"
    of_size = like or value
    if of_size and not 1e-4 <= abs(of_size) < 1e15:
        return f"{value:.{_DIGITS - 1}e}"
    rounded = float(f"{of_size:.{_DIGITS - 1}e}")
    places = _DIGITS - 1 - (math.floor(math.log10(abs(rounded))) if rounded else 0)
    if like and value:
        places = max(places, -math.floor(math.log10(abs(value))))
    return f"{value if like else rounded:,.{max(0, places)}f}"


def range_of(values: Sequence[float | None]) -> str:
    """Return the least and the greatest of the finite values; one number if they read the same."""
    known = sorted(value for value in values if value is not None and math.isfinite(value))
    return "–".join(dict.fromkeys(_cost(value) for value in (known[0], known[-1]))) if known else "–"


def _cost(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else number(value)


def signed(value: float | None, like: float) -> str:
    """Return a difference with its sign, and the decimal places of ``like``."""
    text = number(value, like).replace("-", "−")
    return f"+{text}" if value and value > 0 and not text.startswith("not") else text
