"""What a client trains on and what the server evaluates on, as rows of the decoded images."""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedddpm_app.config import ConfigError, DataConfig
from fedddpm_app.data.partitioning import partition_rows
from fedddpm_app.data.sources import load_source
from fedddpm_app.data.splits import LABEL
from fedddpm_app.data.store import StoredSplit, load_stored
from fedddpm_app.diffusion.images import ImageTensors


@dataclass(frozen=True)
class ClientRows:
    """One client's images, as rows of the training split.

    Attributes
    ----------
    train, held_out : Tensor
        int64: what it trains on, and the share that it only evaluates on.
    """

    train: Tensor
    held_out: Tensor


@dataclass(frozen=True)
class ClientData:
    """One client's images: what it trains on, and the held-out share that it only evaluates on."""

    train: ImageTensors
    held_out: ImageTensors


def load_train_data(config: DataConfig) -> ImageTensors:
    """Return the training split on the CPU, mapped from the cache; ``client_rows`` says what is whose."""
    return _load(config, "train").data


def load_test_data(config: DataConfig) -> ImageTensors:
    """Return the global test split, which no client trains on, on the CPU, mapped from the cache."""
    return _load(config, "test").data


def data_digest(config: DataConfig) -> str:
    """Return the SHA-256 of the decoded training split."""
    return _load(config, "train").info.digest


def load_client_data(config: DataConfig, seed: int, partition_id: int) -> ClientData:
    """Copy partition ``partition_id`` out of the training split; the run's ``seed`` decides the partition."""
    train, rows = load_train_data(config), client_rows(config, seed)[partition_id]
    return ClientData(train.select(rows.train), train.select(rows.held_out))


@functools.lru_cache(maxsize=4)
def client_rows(config: DataConfig, seed: int) -> list[ClientRows]:
    """Return every client's rows of the training split, disjoint.

    Raises
    ------
    ConfigError
        When the data cannot be read or used, or the partition cannot be drawn.
    """
    stored = _load(config, "train")
    labels = None if stored.data.labels is None else stored.data.labels.numpy()
    natural = _natural_column(config, stored) if config.partition == "natural" else None
    parts = [torch.from_numpy(rows) for rows in partition_rows(labels, natural, len(stored.data), config, seed)]
    held = [_num_held_out(len(part), config) for part in parts]
    return [ClientRows(part[count:], part[:count]) for part, count in zip(parts, held, strict=True)]


def check_data(config: DataConfig, seed: int) -> list[int]:
    """Return the number of training images on each client, after checking that the data can be used.

    Raises
    ------
    ConfigError
        When a split cannot be read or used, or the partition cannot be drawn.
    """
    load_test_data(config)
    return [len(rows.train) for rows in client_rows(config, seed)]


def class_names(config: DataConfig) -> list[str]:
    """Return the names of the classes, by label; empty where the source has none."""
    return _load(config, "train").info.class_names


def label_table(config: DataConfig, seed: int) -> Tensor:
    """Return how many training images of each class every client holds.

    Returns
    -------
    Tensor
        int64, shape (``num_clients``, ``num_classes``); of data without labels (``num_clients``, 1).
    """
    labels, rows = load_train_data(config).labels, client_rows(config, seed)
    if labels is None:
        return torch.tensor([[len(client.train)] for client in rows])
    return torch.stack([labels[client.train].bincount(minlength=config.num_classes) for client in rows])


def num_unassigned(config: DataConfig, seed: int) -> int:
    """Return how many images of the training split no client has, as some partitions leave some out."""
    held = sum(len(client.train) + len(client.held_out) for client in client_rows(config, seed))
    return len(load_train_data(config)) - held


def _load(config: DataConfig, split: str) -> StoredSplit:
    stored = load_stored(config)[split]
    _check_labels(stored.data.labels, config)
    return stored


def _num_held_out(count: int, config: DataConfig) -> int:
    """Return the images kept from training: at least one if any are asked for, never the last one."""
    wanted = count * config.held_out_fraction
    return min(max(1, round(wanted)) if wanted else 0, count - 1)


def _natural_column(config: DataConfig, stored: StoredSplit) -> np.ndarray:
    """Return the values of ``partition-column``, shape (N,), as texts."""
    table = load_source(config.dataset)["train"].table
    if config.partition_column not in table.column_names:
        raise ConfigError(
            f'partition-column = "{config.partition_column}" is no column of dataset = "{config.dataset}" (the column '
            f'of labels is "{LABEL}" here): use one of {", ".join(table.column_names)}, or another partition.'
        )
    column = list(table[config.partition_column])
    values = [str(column[row]) for row in stored.rows.tolist()]
    missing = sum(value in ("", "None", "nan") for value in values)
    if missing:
        raise ConfigError(
            f'partition-column = "{config.partition_column}" is empty for {missing} images: fill it, leave these '
            "images out, or use another partition."
        )
    return np.asarray(values)


def _check_labels(labels: Tensor | None, config: DataConfig) -> None:
    """Raise ``ConfigError`` for a conditional model without labels, or a label outside [0, num_classes)."""
    if labels is None:
        if config.class_conditional:
            raise ConfigError("class-conditional = true needs labels, which the data set lacks: use false.")
        return
    least, most = int(labels.min()), int(labels.max())
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
