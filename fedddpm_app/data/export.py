"""Write every client's partition to its own folder, for ``partition = "sites"``."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fedddpm_app.config import ConfigError
from fedddpm_app.data.dataset import FederatedDataset
from fedddpm_app.data.files import is_hidden
from fedddpm_app.data.names import printable
from fedddpm_app.diffusion.images import ImageTensors

_TEST = "test"
_MAX_BYTES = 255  # of a folder's name


def export_sites(dataset: FederatedDataset, folder: Path) -> list[Path]:
    """Write every client's decoded images to ``site-0000``, ..., and the test split to ``test``.

    Parameters
    ----------
    dataset : FederatedDataset
        With any partition.
    folder : Path
        A new or an empty folder.

    Returns
    -------
    list of Path
        The folders written. Each holds one PNG per image; with labels, there is one sub-folder per class.

    Raises
    ------
    ConfigError
        When the data cannot be used, or the folder is not empty or cannot be written.
    """
    names, train, test = dataset.class_names, dataset.train, dataset.test
    for name in names:
        if not _can_be_folder(name):
            raise ConfigError(f'the class "{printable(name)}" cannot be a folder name: rename the class in the source.')
    parts = {
        f"site-{partition_id:04d}": train.select(torch.cat([rows.held_out, rows.train]).sort().values)
        for partition_id, rows in enumerate(dataset.clients)
    }
    if test is not None:
        parts[_TEST] = test
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{printable(folder)} is not empty: give a new folder.")
        for name, images in parts.items():
            _write(images, names, folder / name)
    except OSError as error:
        raise ConfigError(f"{printable(folder)} cannot be written ({error.strerror}): give another folder.") from error
    return [folder / name for name in parts]


def _can_be_folder(name: str) -> bool:
    """Return whether a folder with a class's name is read as this class again, at any site."""
    is_name = name != "" and Path(name).name == name == printable(name).strip() and len(os.fsencode(name)) <= _MAX_BYTES
    return is_name and "," not in name and not is_hidden(name)


def _write(data: ImageTensors, names: list[str], folder: Path) -> None:
    for index, (image, label) in enumerate(_pairs(data)):
        parent = folder if label is None else folder / (names[label] if names else str(label))
        parent.mkdir(parents=True, exist_ok=True)
        pixels = image.permute(1, 2, 0).squeeze(2) if image.shape[0] == 1 else image.permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(parent / f"{index:06d}.png")


def _pairs(data: ImageTensors) -> Iterator[tuple[Tensor, int | None]]:
    labels = [None] * len(data) if data.labels is None else data.labels.tolist()
    return zip(data.images, labels, strict=True)
