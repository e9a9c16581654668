"""Weights that are computed once per data set, in safetensors files that several runs may share."""

from collections.abc import Callable, Collection
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedddpm_app.disk.durable import replacing
from fedddpm_app.disk.private import private_folder
from fedddpm_app.weights import Weights


def load_or_create(path: Path, create: Callable[[], Weights], holds: Collection[str] = ()) -> Weights:
    """Return the weights in a file; first write the file if it is missing, cannot be read, or lacks a name.

    If two processes need the same file at the same time, one computes it and the other waits. A file is either
    complete or absent, whenever a process ends.

    Parameters
    ----------
    path : Path
        Ends in ``.safetensors``; its name contains all that the weights depend on. Its folder is created.
    create : callable
        Computes the weights: on the CPU and contiguous.
    holds : collection of str
        Names that the file must contain: a file from an earlier version may lack some.

    Returns
    -------
    Weights
        On the CPU.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """
    private_folder(path.parent)
    with FileLock(path.with_suffix(".lock"), mode=0o600):
        weights = _read(path)
        if weights is None or not weights.keys() >= set(holds):
            weights = create()
            with replacing(path) as work:
                save_file(weights, work)
    return weights


def _read(path: Path) -> Weights | None:
    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError):
        return None
