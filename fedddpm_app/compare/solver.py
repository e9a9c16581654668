"""Matching: the largest value of a whole-number key whose run costs no more than a budget."""

from collections.abc import Callable
from dataclasses import replace

from fedddpm_app.config import Config, ConfigError
from fedddpm_app.config.loading import GROUPS, keys_of

_LARGEST = 2**40
_ROUNDING = 1e-9  # relative: costs are sums of thirds


def with_whole_number(config: Config, key: str, value: int) -> Config:
    """Return a config with another value of a whole-number key, which is not checked together with other keys."""
    group, field = _field_of(key)
    return replace(config, **{group: replace(getattr(config, group), **{field: value})})


def is_whole_number(key: str) -> bool:
    """Return whether a key of the run config takes whole numbers."""
    group, field = _field_of(key)
    return GROUPS[group].__pydantic_fields__[field].annotation is int  # type: ignore[attr-defined]


def solve(cost: Callable[[int], float], budget: float) -> int:
    """Return the largest value from 1 whose cost is at most the budget, by bisection.

    Parameters
    ----------
    cost : callable
        The cost of a value; it never falls when the value grows.
    budget : float
        In the same unit.

    Raises
    ------
    ConfigError
        When the cost of 1 is above the budget, or the cost does not grow; the message is the end of a sentence.
    """
    limit = budget * (1 + _ROUNDING)
    least = cost(1)
    if least > limit:
        raise ConfigError(f"it costs {least:,.6g} even with the value 1, more than the budget of {budget:,.6g}")
    low, high = 1, 2
    while cost(high) <= limit:
        low, high = high, 2 * high
        if high > _LARGEST:
            raise ConfigError("its cost does not depend on this key")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= limit else (low, middle)
    return low


def _field_of(key: str) -> tuple[str, str]:
    return next((name, keys_of(group)[key]) for name, group in GROUPS.items() if key in keys_of(group))
