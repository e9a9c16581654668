"""The names of classes: their order."""


def in_order(names: set[str]) -> list[str]:
    """Return class names in the order of their labels: alphabetical, or numerical if they are 0, 1, 2, ..."""
    numbers = {str(k) for k in range(len(names))}
    return sorted(names, key=int) if names == numbers else sorted(names)
