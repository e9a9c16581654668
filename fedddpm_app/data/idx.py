"""IDX files, the format of MNIST and similar data sets (LeCun et al.): big-endian, gzipped or not."""

import gzip
import math
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedddpm_app import limits
from fedddpm_app.config import ConfigError
from fedddpm_app.data.files import find_files
from fedddpm_app.data.names import printable
from fedddpm_app.data.splits import split_named
from fedddpm_app.progress import logger

_IMAGES = re.compile(r"(?P<stem>.*?)images[.-]idx[34]-ubyte(\.gz)?")
_DAMAGED = (EOFError, OSError, struct.error, zlib.error)
_UNSIGNED_BYTE = 0x08
_MAX_DIMENSIONS = 4  # (N, H, W, 3)
_MAX_IMAGE_BYTES = 3 * limits.PIXELS
_BYTES_PER_READ = 2**24


def find_idx(folder: Path) -> dict[str, tuple[Path, Path | None]]:
    """Return the image file and the label file (None if there is none) of each split.

    Such a file is ``train-images-idx3-ubyte.gz``.

    Raises
    ------
    ConfigError
        When two files belong to one split, as in a folder of several data sets.
    """
    found: dict[str, tuple[Path, Path | None]] = {}
    for path in (path for path in find_files(folder) if "ubyte" in path.name):
        match = _IMAGES.fullmatch(path.name)
        if match is None:
            continue
        if path.suffix == ".gz" and path.with_suffix("").exists():
            continue  # the unpacked file is in the same folder
        split = "test" if split_named(match["stem"]) in ("test", "validation") else "train"
        if split in found:
            raise ConfigError(
                f"{folder} holds two IDX files of {split} images, {found[split][0].name} and {path.name}: give a "
                "folder with one data set."
            )
        stem = match["stem"]
        label_names = re.compile(re.escape(stem) + r"labels[.-]idx1-ubyte(\.gz)?")
        found[split] = (path, next((p for p in sorted(path.parent.iterdir()) if label_names.fullmatch(p.name)), None))
    _warn_of_other_labels(folder, found)
    return found


def _warn_of_other_labels(folder: Path, found: Mapping[str, tuple[Path, Path | None]]) -> None:
    """Warn of files that look like labels, where images have none."""
    named = [path.name for path in find_files(folder) if "ubyte" in path.name and "label" in path.name.lower()]
    for split, (images, labels) in found.items():
        used = {other.name.removesuffix(".gz") for _, other in found.values() if other}
        others = [name for name in named if name.removesuffix(".gz") not in used]
        if labels is None and others:
            expected = images.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
            text = "%s has no labels for the %s split: they are read from %s, and not from %s"
            logger.warning(text, printable(folder), split, printable(expected), printable(others[0]))


def read_idx(path: Path) -> np.ndarray:
    """Read a file of unsigned bytes.

    Returns
    -------
    np.ndarray
        uint8, in the shape that the header gives.

    Raises
    ------
    ValueError
        When the file is not an IDX file of unsigned bytes, or its size does not match its header.
    """
    try:
        return _read(path)
    except _DAMAGED as error:
        raise ValueError(f"{path.name} is damaged ({error})") from error
    except MemoryError as error:
        raise ValueError(f"{path.name} needs more memory than this machine has") from error


def _read(path: Path) -> np.ndarray:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        header = file.read(4)
        if len(header) < 4 or header[:2] != b"\0\0" or header[2] != _UNSIGNED_BYTE:
            raise ValueError(f"{path.name} is not an IDX file of unsigned bytes")
        shape = struct.unpack(f">{header[3]}I", file.read(4 * header[3]))
        _check_shape(shape, path)
        content = np.empty(math.prod(shape), np.uint8)
        view, filled = content.data, 0
        while filled < len(content):
            count = file.readinto(view[filled : filled + _BYTES_PER_READ])
            if not count:
                raise _other_size(shape, path)
            filled += count
        if file.read(1):
            raise _other_size(shape, path)
    return content.reshape(shape)


def _check_shape(shape: tuple[int, ...], path: Path) -> None:
    """Raise ``ValueError`` if a file cannot hold the shape in its header; no memory is taken before this check."""
    if not 0 < len(shape) <= _MAX_DIMENSIONS:
        raise ValueError(f"{path.name} claims {len(shape)} dimensions, but labels have 1 and images have 3 or 4")
    if 0 in shape[1:] or math.prod(shape[1:]) > _MAX_IMAGE_BYTES:
        size = " x ".join(map(str, shape[1:]))
        raise ValueError(f"{path.name} claims images of {size}, but an image has 1 to {limits.PIXELS:,} pixels")
    packed, stated = path.stat().st_size, math.prod(shape)
    if path.suffix != ".gz" and stated > packed:
        raise _other_size(shape, path)
    if stated > max(limits.UNPACKED_BYTES, limits.UNPACKED_RATIO * packed):
        raise ValueError(
            f"{path.name} does not hold, or unpacks to, the {stated:,} bytes that its header states, more than "
            f"{limits.UNPACKED_RATIO} times its {packed:,} bytes: unpack it, if they are right"
        )


def _other_size(shape: tuple[int, ...], path: Path) -> ValueError:
    return ValueError(f"{path.name} does not hold the {' x '.join(map(str, shape))} bytes that its header gives")
