"""Split a whole number, or the images of several models, in proportion to weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def largest_remainder(total: int, weights: Sequence[float]) -> list[int]:
    """Split ``total`` into whole shares that are proportional to ``weights`` and sum to ``total`` exactly.

    Ties go to the earlier share (Hamilton's method).

    Raises
    ------
    ValueError
        When a weight is negative, or the weights do not have a positive sum.
    """
    [shares] = split_groups([total], [weights])
    return shares


def split_groups(sizes: Sequence[int], weights: Sequence[Sequence[float]]) -> list[list[int]]:
    """Split each of several groups in proportion to weights of its own; return the shares of each group.

    Each share is the whole number below or above its quota. Those that are furthest below the sum of their quotas so
    far are rounded up (controlled rounding), so that the rounding of many groups does not add up, as it does with the
    largest remainders of each group. One group is split as by ``largest_remainder``.

    Parameters
    ----------
    sizes : sequence of int
        The number to split, by group.
    weights : sequence of sequence of float
        The weights of the shares, by group.

    Raises
    ------
    ValueError
        When a weight is negative, or the weights of a group do not have a positive sum.
    """
    behind, found = np.zeros(len(weights[0]) if weights else 0), []
    for size, of_group in zip(sizes, weights, strict=True):
        if not sum(of_group) > 0 or min(of_group) < 0:
            raise ValueError(f"{size} cannot be split by weights {list(of_group)}: they must be >= 0 and not all 0")
        quotas = size * np.asarray(of_group, dtype=np.float64) / sum(of_group)
        shares = np.floor(quotas).astype(int)
        behind += quotas - shares
        order = np.argsort(np.where(quotas > shares, -behind, np.inf), kind="stable")
        up = order[: size - shares.sum()]
        shares[up] += 1
        behind[up] -= 1.0
        found.append([int(share) for share in shares])
    return found


def labels_by_share(total: int, counts: Sequence[int]) -> Tensor:
    """Return ``total`` labels, int64 and ascending, with class shares proportional to ``counts`` (one per class)."""
    per_class = largest_remainder(total, counts)
    return torch.repeat_interleave(torch.arange(len(per_class)), torch.tensor(per_class))


def labels_by_systematic_sampling(total: int, counts: Sequence[int], start: float) -> Tensor:
    """Return ``total`` labels, int64 and ascending, that follow ``counts`` (one per class) without a bias.

    The examples lie in a row, ordered by class, and every (n / ``total``)-th is taken (systematic sampling; Madow and
    Madow 1944). The number of a class is the whole number below or above its quota. If ``start`` is uniform in [0, 1),
    its mean is the quota, so that the rounding of many small parts does not add up, as it does with largest
    remainders, which always favour the same classes.

    Raises
    ------
    ValueError
        When a count is negative, or the counts do not have a positive sum.
    """
    if not sum(counts) > 0 or min(counts) < 0:
        raise ValueError(f"{total} labels cannot follow the counts {list(counts)}: they must be >= 0 and not all 0")
    places = (np.arange(total) + start) * (sum(counts) / max(total, 1))
    places = np.minimum(places, np.nextafter(sum(counts), 0))  # rounding may reach the end
    labels = np.searchsorted(np.cumsum(counts), places, side="right")
    return torch.from_numpy(labels.astype(np.int64))


def spread_out(count: int, most: int) -> list[int]:
    """Return at most ``most`` of the indices below ``count``, evenly spread, with the first and the last."""
    if count <= most:
        return list(range(count))
    return [round(k * (count - 1) / (most - 1)) for k in range(most)]


class Shares:
    """The parts of several models in the images that they generate together.

    A model's part is proportional to its number of examples, and among the images of a class, to its examples of this
    class. A class of which no model has an example is divided as images without a class are.

    Attributes
    ----------
    num_examples : dict of int to int
        By the model's number, ascending.
    label_counts : dict of int to list of int
        Examples per class, by the model's number; no entry for a model without labels.
    """

    def __init__(
        self, num_examples: Mapping[int, int] | None = None, label_counts: Mapping[int, Sequence[int]] | None = None
    ) -> None:
        self.num_examples = dict(sorted((num_examples or {}).items()))
        self.label_counts = {model: [*counts] for model, counts in sorted((label_counts or {}).items()) if counts}

    def __bool__(self) -> bool:
        """Return whether there are any models."""
        return bool(self.num_examples)

    def assign(self, count: int, labels: Tensor | None = None) -> dict[int, Tensor]:
        """Return each model's images of ``count`` images, as ascending indices (int64).

        Parts are rounded so that a model's rounding does not add up over the classes. ``labels`` are the images'
        classes, int64, shape (count,). A model without any image has no entry.
        """
        images, weights = torch.arange(count), [list(self.num_examples.values())]
        groups = [images]
        if labels is not None:
            known = sorted(set(labels.tolist()))
            groups, weights = [images[labels == label] for label in known], list(map(self._of_class, known))
        parts: dict[int, list[Tensor]] = {model: [] for model in self.num_examples}
        for group, sizes in zip(groups, split_groups([len(group) for group in groups], weights), strict=True):
            for model, part in zip(parts, torch.split(group, sizes), strict=True):
                parts[model].append(part)
        joined = {model: torch.cat(each).sort().values for model, each in parts.items()}
        return {model: part for model, part in joined.items() if len(part)}

    def state_dict(self) -> dict[str, object]:
        """Return the shares as dicts and lists."""
        return {"num_examples": dict(self.num_examples), "label_counts": dict(self.label_counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the result of ``state_dict``, also when JSON has made its keys texts."""
        read = Shares(
            {int(model): int(number) for model, number in state["num_examples"].items()},
            {int(model): [int(number) for number in counts] for model, counts in state["label_counts"].items()},
        )
        self.num_examples, self.label_counts = read.num_examples, read.label_counts

    def _of_class(self, label: int) -> list[int]:
        counts = [self.label_counts.get(model, []) for model in self.num_examples]
        found = [of_model[label] if label < len(of_model) else 0 for of_model in counts]
        return found if any(found) else list(self.num_examples.values())
