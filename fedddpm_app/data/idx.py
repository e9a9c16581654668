"""IDX files, the format of MNIST and similar data sets (LeCun et al.): big-endian, gzipped or not."""

import gzip
import math
import re
import struct
import zlib
from pathlib import Path

import numpy as np

from fedddpm_app.config import ConfigError
from fedddpm_app.data.splits import split_named

_IMAGES = re.compile(r"(?P<stem>.*?)images[.-]idx[34]-ubyte(\.gz)?")
_DAMAGED = (EOFError, OSError, struct.error, zlib.error)
_UNSIGNED_BYTE = 0x08
_ROWS_PER_READ = 1000


def find_idx(folder: Path) -> dict[str, tuple[Path, Path | None]]:
    """Return the image file and the label file (None if there is none) of each split.

    Such a file is ``train-images-idx3-ubyte.gz``.

    Raises
    ------
    ConfigError
        When two files belong to one split, as in a folder of several data sets.
    """
    found: dict[str, tuple[Path, Path | None]] = {}
    for path in sorted(folder.rglob("*ubyte*")):
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
    return found


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


def _read(path: Path) -> np.ndarray:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        header = file.read(4)
        if len(header) < 4 or header[:2] != b"\0\0" or header[2] != _UNSIGNED_BYTE:
            raise ValueError(f"{path.name} is not an IDX file of unsigned bytes")
        shape = struct.unpack(f">{header[3]}I", file.read(4 * header[3]))
        row_bytes = math.prod(shape[1:])
        rows = []  # read in pieces: a damaged header may claim more data than the file has
        for start in range(0, shape[0], _ROWS_PER_READ):
            rows.append(file.read(min(_ROWS_PER_READ, shape[0] - start) * row_bytes))
            if len(rows[-1]) < min(_ROWS_PER_READ, shape[0] - start) * row_bytes:
                break
        content = b"".join(rows)
        if len(content) != shape[0] * row_bytes or file.read(1):
            raise ValueError(f"{path.name} does not hold the {' x '.join(map(str, shape))} bytes that its header gives")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)
