"""Weights computed once per data set, kept in safetensors files that several runs may share."""

import os
from collections.abc import Callable, Collection
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedddpm_app.weights import Weights


def load_or_create(path: Path, create: Callable[[], Weights], holds: Collection[str] = ()) -> Weights:
    """Return the weights in a file, which is written first if it is not there, cannot be read, or lacks a name.

    Of two processes that ask for the same file at once one computes and the other waits for it. A file is
    complete or not there, whenever a process ends.

    Parameters
    ----------
    path : Path
        Ends in ``.safetensors``; its name tells apart all that the weights depend on. Its folder is made.
    create : callable
        Computes the weights: on the CPU and contiguous.
    holds : collection of str
        Names that the file must hold: a file that an earlier version wrote may lack some.

    Returns
    -------
    Weights
        On the CPU.

    Raises
    ------
    OSError
        When the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        weights = _read(path)
        if weights is None or not weights.keys() >= set(holds):
            weights = create()
            partial = path.with_suffix(f".{os.getpid()}.partial")
            save_file(weights, partial)
            partial.chmod(0o644)  # safetensors makes it for its owner alone
            partial.replace(path)
    return weights


def _read(path: Path) -> Weights | None:
    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError):
        return None
