"""Which classes generated images shall have."""

import torch
from torch import Tensor

from fedddpm_app.apportion import labels_by_share


def class_rows(num_classes: int, num_images: int) -> Tensor:
    """Return labels for at least ``num_images`` images, the same number for every class, class by class."""
    return torch.arange(num_classes).repeat_interleave(-(-num_images // num_classes))


def balanced_labels(count: int, num_classes: int) -> Tensor:
    """Return int64 labels, shape (``count``,), class by class; the numbers per class differ by at most one."""
    return torch.arange(count).mul(num_classes).div(count, rounding_mode="floor")


def labels_like(labels: Tensor | None, count: int) -> Tensor | None:
    """Return ``count`` labels, int64, with the distribution of ``labels`` over the classes; None for no labels."""
    return None if labels is None else labels_by_share(count, labels.bincount().tolist())
