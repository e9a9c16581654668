"""Nested Python values with tensors, as one JSON value and one flat mapping of tensors: no pickle."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

_TENSOR, _ARRAY, _PAIRS = "tensor", "array", "pairs"
Tree = object  # None, bool, int, float, str, Tensor, ndarray, and lists, tuples and mappings of them


def split(tree: Tree) -> tuple[object, dict[str, Tensor]]:
    """Return a tree as a JSON value, which names the tensors in it, and these tensors.

    The tensors are contiguous copies on the CPU: a later change of the tree does not change them. A tuple becomes a
    list.

    Raises
    ------
    TypeError
        For any other value; the message has its place in the tree.
    """
    tensors: dict[str, Tensor] = {}
    return _split(tree, "", tensors), tensors


def join(value: object, tensors: Mapping[str, Tensor]) -> Tree:
    """Return the tree that ``split`` returned the parts of.

    Raises
    ------
    ValueError
        When the parts do not belong together.
    """
    if isinstance(value, list):
        return [join(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"tensor": str(name)} if name in tensors:
            return tensors[name]
        case {"array": str(name)} if name in tensors:
            return tensors[name].numpy()
        case {"pairs": list(pairs)} if all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            return {key: join(item, tensors) for key, item in pairs}
    raise ValueError(f"{str(value)[:100]} is not a part of a checkpoint")


def _split(tree: Tree, place: str, tensors: dict[str, Tensor]) -> object:
    if isinstance(tree, np.generic):
        tree = tree.item()
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if isinstance(tree, Tensor | np.ndarray):
        name = place or "value"
        kind = _ARRAY if isinstance(tree, np.ndarray) else _TENSOR
        tensors[name] = torch.as_tensor(tree).detach().to("cpu", copy=True).contiguous()
        return {kind: name}
    if isinstance(tree, Mapping):
        if not all(isinstance(key, str | int) for key in tree):
            raise TypeError(f"{place}: a mapping in a checkpoint has texts and whole numbers as keys only.")
        pairs = [[key, _split(item, f"{place}/{key}".lstrip("/"), tensors)] for key, item in tree.items()]
        return {_PAIRS: pairs}
    if isinstance(tree, list | tuple):
        return [_split(item, f"{place}/{index}".lstrip("/"), tensors) for index, item in enumerate(tree)]
    raise TypeError(
        f"{place}: a {type(tree).__name__} cannot be kept in a checkpoint; use tensors, numbers, texts, and lists and "
        "dicts of them, or give it state_dict() and load_state_dict()."
    )
