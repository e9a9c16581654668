import dataclasses
import io
import struct
import zlib

import datasets
import numpy as np
import pytest
from PIL import Image

from fedddpm_app.data.dataset import ClientRows, open_dataset
from fedddpm_app.data.store import load_stored


def picture(rng, size=(10, 12), bands=3):
    shape = size if bands == 1 else (*size, bands)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


@pytest.fixture
def folder_of_images(tmp_path):
    """Two classes of 30 random RGB pictures each, 12 pixels wide and 10 high."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for k in range(30):
            picture(rng).save(tmp_path / "pictures" / label / f"{k:02d}.png")
    return tmp_path / "pictures"


@pytest.fixture
def data_config(config):
    """A data config with changes; a folder is given as ``folder``."""

    def of(folder=None, **changes):
        if folder is not None:
            changes = {"dataset": f"path:{folder}", "partition": "iid", "num_clients": 2} | changes
        return dataclasses.replace(config.data, **changes)

    return of


@pytest.fixture
def stored(data_config):
    """The decoded splits of a data config."""
    return lambda folder=None, **changes: load_stored(data_config(folder, **changes))


def table_of(pixels, labels=None, feature=None, image="image", label="label"):
    """A data set of pictures, with labels of any type."""
    features = {image: datasets.Image()} | ({} if labels is None else {label: feature or datasets.Value("int64")})
    columns = {image: list(pixels)} | ({} if labels is None else {label: labels})
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


def noise(count, size=(4, 4), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *size), dtype=np.uint8)


def encoded(table):
    """The images of a data set as they are stored."""
    return table.cast_column("image", datasets.Image(decode=False))["image"]


def client_images(data, seed, partition_id):
    """One client's rows with their images: what it trains on, and what it holds out."""
    dataset = open_dataset(data, seed)
    rows = dataset.client(partition_id)
    return ClientRows(dataset.train.select(rows.train), dataset.train.select(rows.held_out))


def png(width, height, bits, colour, rows, *chunks):
    """A PNG file of any bit depth and colour type; Pillow writes few of them."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = b"".join(chunk(name, data) for name, data in chunks) + chunk(b"IDAT", zlib.compress(rows))
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b""))
