"""From data sets to tensors: what a client trains on and what the server evaluates on."""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from flwr_datasets.partitioner import Partitioner
from PIL import Image, ImageOps

from fedddpm_app.config import ConfigError, DataConfig
from fedddpm_app.data.partitioning import partition_dataset
from fedddpm_app.data.sources import load_source
from fedddpm_app.diffusion.images import ImageTensors


@dataclass(frozen=True)
class ClientData:
    """One client's images: what it trains on, and the held-out share that it only evaluates on."""

    train: ImageTensors
    held_out: ImageTensors


def load_client_data(config: DataConfig, seed: int, partition_id: int) -> ClientData:
    """Load partition ``partition_id`` on the CPU; the run's ``seed`` decides the partition and the split."""
    images = to_tensors(_partitioner(config, seed).load_partition(partition_id), config)
    num_held_out = _num_held_out(len(images), config)
    index = torch.arange(len(images))  # partitions come shuffled
    return ClientData(images.select(index[num_held_out:]), images.select(index[:num_held_out]))


def _num_held_out(count: int, config: DataConfig) -> int:
    """Return the images kept from training: at least one if any are asked for, never the last one."""
    wanted = count * config.held_out_fraction
    return min(max(1, round(wanted)) if wanted else 0, count - 1)


def load_test_data(config: DataConfig) -> ImageTensors:
    """Load the global test split, which no client trains on, on the CPU."""
    test = load_source(config.dataset)["test"]
    _check_labels(test, config)
    return to_tensors(test, config)


def check_data(config: DataConfig, seed: int) -> list[int]:
    """Return the number of training images on each client, after checking that the data can be used.

    Raises
    ------
    ConfigError
        When a split cannot be read or is empty, or the partition cannot be drawn.
    """
    for name, split in load_source(config.dataset).items():
        if not len(split):
            raise ConfigError(f'dataset = "{config.dataset}" has no images in its {name} split; give some.')
        _check_labels(split, config)
        to_tensors(split.select([0]), config)
    partitioner = _partitioner(config, seed)
    sizes = [len(partitioner.load_partition(i)) for i in range(config.num_clients)]
    return [size - _num_held_out(size, config) for size in sizes]


def to_tensors(dataset: Dataset, config: DataConfig) -> ImageTensors:
    """Decode, crop to a square, resize and stack a data set.

    Returns
    -------
    ImageTensors
        uint8, shape (N, ``image_channels``, ``image_size``, ``image_size``), with labels in
        [0, ``num_classes``) where the data set has them.
    """
    mode = "L" if config.image_channels == 1 else "RGB"
    size = (config.image_size, config.image_size)
    pixels = np.empty((len(dataset), *size, config.image_channels), dtype=np.uint8)
    try:
        for row, image in enumerate(dataset["image"]):
            fitted = ImageOps.fit(_to_8_bits(image).convert(mode), size, Image.Resampling.BICUBIC)
            pixels[row] = np.asarray(fitted).reshape(*size, config.image_channels)
    except (OSError, AttributeError) as error:
        raise ConfigError(f'dataset = "{config.dataset}": an image of it cannot be read ({error}).') from error
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(list(dataset["label"]), dtype=torch.int64) if "label" in dataset.column_names else None
    return ImageTensors(images, labels)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits, which PIL would clip."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ConfigError(f"an image has {image.mode} pixels (32 bits), whose range is not known: store 8 or 16 bits.")
    return image


def _check_labels(dataset: Dataset, config: DataConfig) -> None:
    """Raise ``ConfigError`` for a conditional model without labels, or a label outside [0, num_classes)."""
    if "label" not in dataset.column_names:
        if config.class_conditional:
            raise ConfigError("class-conditional = true needs labels, which the data set lacks: use false.")
        return
    least, most = min(dataset["label"]), max(dataset["label"])
    if least < 0:
        raise ConfigError(
            f'dataset = "{config.dataset}" has the label {least}: labels are 0 to num-classes - 1; leave unlabelled '
            "images out, or store the set without labels."
        )
    if most >= config.num_classes:
        raise ConfigError(
            f"num-classes = {config.num_classes}, but the data have labels {least} to {most}: "
            f"use num-classes = {most + 1} and labels from 0."
        )


@functools.lru_cache(maxsize=2)
def _partitioner(config: DataConfig, seed: int) -> Partitioner:
    train = load_source(config.dataset)["train"]
    _check_labels(train, config)
    return partition_dataset(train, config, seed)
