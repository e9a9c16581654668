"""Finished batches of images in files, so that a restarted run does not generate them again."""

import contextlib
import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedddpm_app.disk.durable import replacing
from fedddpm_app.disk.private import private_folder
from fedddpm_app.progress import logger

_IMAGES, _DIGEST = "images", "sha256"


class BatchFiles:
    """Batches of images by key; a file is either complete or absent.

    Parameters
    ----------
    folder : Path
        Created when the first batch is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, key: str, shape: tuple[int, ...]) -> Tensor | None:
        """Return a batch, uint8 of ``shape``; None if it does not exist, and, with a warning, if it is damaged."""
        path = self._path(key)
        try:
            if not path.exists():
                return None
            with safe_open(path, framework="pt") as file:
                images: Tensor = file.get_tensor(_IMAGES)
                digest = (file.metadata() or {}).get(_DIGEST)
            if (tuple(images.shape), images.dtype) != (shape, torch.uint8) or digest != _digest(images):
                raise ValueError("its content has changed since it was written")
        except (OSError, ValueError, SafetensorError) as error:
            logger.warning("the auxiliary images %s are damaged (%s): they are generated again", path, error)
            return None
        return images

    def save(self, key: str, images: Tensor) -> None:
        """Write a batch; if that fails, log a warning: a restarted run then generates the batch again."""
        try:
            private_folder(self.folder)
            with replacing(self._path(key)) as work:
                save_file({_IMAGES: images.contiguous()}, work, {_DIGEST: _digest(images)})
        except (OSError, SafetensorError) as error:
            logger.warning("auxiliary images cannot be kept for a restart of the run: %s", error)

    def remove(self, keys: Iterable[str]) -> None:
        """Remove batches, the remains of interrupted writes of them, and the folder if nothing else is in it."""
        for key in keys:
            for path in self.folder.glob(f"{key}.*"):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def _digest(images: Tensor) -> str:
    return hashlib.sha256(images.contiguous().numpy().data).hexdigest()
