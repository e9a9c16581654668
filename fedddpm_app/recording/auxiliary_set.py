"""D_aux in the run directory: an Arrow data set with a digest, from which a resumed run reads it again."""

import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PillowImage
from torch import Tensor

from fedddpm_app import limits
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.disk.arrow import check_saved, stored_cells
from fedddpm_app.disk.bounded import read_object
from fedddpm_app.disk.durable import publish
from fedddpm_app.progress import logger
from fedddpm_app.recording.files import write_json, writing
from fedddpm_app.recording.sheets import to_pil

_DATASET, _ABOUT = "dataset", "dataset.json"


def save_auxiliary_set(folder: Path, data: ImageTensors, clients: list[int]) -> str:
    """Write D_aux into ``folder``, and return its digest.

    ``folder/dataset`` has the columns ``image``, ``client`` (and ``label``); ``clients`` holds the partition id of each
    image. It is complete once ``folder/dataset.json`` exists.
    """
    columns: dict[str, list[object]] = {"image": [to_pil(image) for image in data.images], "client": [*clients]}
    features = {"image": Image(), "client": Value("int32")}
    if data.labels is not None:
        columns["label"] = data.labels.tolist()
        features["label"] = ClassLabel(num_classes=int(data.labels.max()) + 1)
    digest, partial = data.digest(), folder / f"{_DATASET}.partial"
    with writing(folder):
        (folder / _ABOUT).unlink(missing_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(folder / _DATASET, ignore_errors=True)
        Dataset.from_dict(columns, features=Features(features)).save_to_disk(str(partial))
        publish(partial, folder / _DATASET)
    write_json(folder / _ABOUT, {"sha256": digest, "clients_sha256": _digest(clients), "num_images": len(data)})
    return digest


def discard_auxiliary_set(folder: Path) -> None:
    """Mark a stored D_aux as incomplete, so that it is not read again."""
    (folder / _ABOUT).unlink(missing_ok=True)


class StoredAuxiliary(NamedTuple):
    """A stored D_aux, the partition id of each image, and the digest of the images and labels."""

    data: ImageTensors
    clients: list[int]
    digest: str


def load_auxiliary_set(folder: Path) -> StoredAuxiliary | None:
    """Return D_aux; None if it is not there, and, with a warning, if it is damaged."""
    if not (folder / _ABOUT).exists():
        return None
    try:
        about = read_object(folder / _ABOUT)
        check_saved(folder / _DATASET)
        table = datasets.load_from_disk(str(folder / _DATASET))
        images = torch.stack([_pixels(image) for image in _pictures(table)])
        labels = (
            torch.tensor(stored_cells(table, "label"), dtype=torch.int64) if "label" in table.column_names else None
        )
        data, clients = ImageTensors(images, labels), [int(client) for client in stored_cells(table, "client")]
        if (data.digest(), _digest(clients)) != (about["sha256"], about["clients_sha256"]):
            raise ValueError("its SHA-256 differs")
    except Exception as error:  # noqa: BLE001 - a damaged Arrow file raises errors of many types
        logger.warning("the auxiliary set in %s is damaged (%s): it is not used", folder, error)
        return None
    return StoredAuxiliary(data, clients, data.digest())


def _pictures(table: Dataset) -> list[PillowImage.Image]:
    """Return the pictures that a table holds, with their pixels unread; other formats than ours may be programs."""
    stored = [cell["bytes"] or b"" for cell in stored_cells(table, "image")]
    pictures: list[PillowImage.Image] = [PillowImage.open(io.BytesIO(each), formats=["PNG"]) for each in stored]
    size = sum(each.width * each.height * len(each.getbands()) for each in pictures)
    if size > max(limits.UNPACKED_BYTES, limits.UNPACKED_RATIO * sum(map(len, stored))):
        raise ValueError(f"its pictures unpack to {size:,} bytes, more than {limits.UNPACKED_RATIO} times their size")
    return pictures


def _digest(clients: list[int]) -> str:
    return hashlib.sha256(json.dumps(clients).encode()).hexdigest()


def _pixels(image: PillowImage.Image) -> Tensor:
    """Return an image as uint8 (C, H, W)."""
    pixels = torch.from_numpy(np.array(image))
    return pixels.reshape(image.height, image.width, -1).permute(2, 0, 1).contiguous()
