"""What a client trains on and what the server evaluates on, as rows of the decoded images."""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedddpm_app.config import ConfigError, DataConfig
from fedddpm_app.data.partitioning import check_size, partition_rows
from fedddpm_app.data.sites import SITE, SITES, is_site, load_splits
from fedddpm_app.data.splits import LABEL
from fedddpm_app.data.store import StoredSplit, load_stored
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.seeding import derive_seed


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


def load_split(config: DataConfig, split: str) -> ImageTensors:
    """Return a split on the CPU, mapped from the cache."""
    return _load(config, split).data


def load_train_data(config: DataConfig) -> ImageTensors:
    """Return the training split; ``client_rows`` says what is whose."""
    return load_split(config, "train")


def has_train_data(config: DataConfig) -> bool:
    """Return whether this host has the training split; in a deployment with ``partition = "sites"`` none has."""
    return "train" in load_stored(config)


def load_test_data(config: DataConfig) -> ImageTensors | None:
    """Return the global test split, which no client trains on; None where there are sites only."""
    return load_split(config, "test") if "test" in load_stored(config) else None


def data_digest(config: DataConfig) -> str:
    """Return the SHA-256 of the decoded training split."""
    return _load(config, "train").info.digest


def load_client_data(config: DataConfig, seed: int, partition_id: int) -> ClientData:
    """Copy partition ``partition_id`` out of the training split; the run's ``seed`` decides the partition."""
    train, rows = load_train_data(config), client_rows(config, seed)[partition_id]
    return ClientData(train.select(rows.train), train.select(rows.held_out))


def rows_of_client(config: DataConfig, seed: int, partition_id: int) -> ClientRows:
    """Return one client's rows of the training split, which may be of its own site's images (``sites.of_site``)."""
    if not is_site(config):
        return client_rows(config, seed)[partition_id]
    part = _site_rows(np.arange(len(load_train_data(config))), config, seed, partition_id)
    return _with_held_out(part, config)


@functools.lru_cache(maxsize=4)
def client_rows(config: DataConfig, seed: int) -> list[ClientRows]:
    """Return every client's rows of the training split, disjoint.

    Raises
    ------
    ConfigError
        When the data cannot be read or used, or the partition cannot be drawn.
    """
    stored = _load(config, "train")
    if config.partition == SITES:
        owner = np.asarray(load_splits(config)["train"].table[SITE])[stored.rows]
        parts = [_site_rows(np.flatnonzero(owner == k), config, seed, k) for k in range(config.num_clients)]
    else:
        labels = None if stored.data.labels is None else stored.data.labels.numpy()
        natural = _natural_column(config, stored) if config.partition == "natural" else None
        parts = partition_rows(labels, natural, len(stored.data), config, seed)
    return [_with_held_out(part, config) for part in parts]


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
    splits = load_stored(config)
    if split not in splits:
        raise ConfigError(
            f'dataset = "{config.dataset}", partition = "{SITES}": there is no {split} split on this host; in a '
            f'simulation give "path:" and a folder that holds one folder per client and one named "test", in a '
            "deployment start every SuperNode with data-path=... in its --node-config."
        )
    stored = splits[split]
    _check_labels(stored.data.labels, config)
    return stored


def _site_rows(rows: np.ndarray, config: DataConfig, seed: int, partition_id: int) -> np.ndarray:
    """Return a site's rows in the shuffled order that its seed gives, whatever else lies beside them."""
    check_size(len(rows), partition_id, config)
    generator = np.random.default_rng(derive_seed(seed, "partition", partition_id))
    return rows[generator.permutation(len(rows))]


def _with_held_out(part: np.ndarray, config: DataConfig) -> ClientRows:
    """Cut the held-out share off a client's rows."""
    rows, count = torch.from_numpy(part), _num_held_out(len(part), config)
    return ClientRows(rows[count:], rows[:count])


def _num_held_out(count: int, config: DataConfig) -> int:
    """Return the images kept from training: at least one if any are asked for, never the last one."""
    wanted = count * config.held_out_fraction
    return min(max(1, round(wanted)) if wanted else 0, count - 1)


def _natural_column(config: DataConfig, stored: StoredSplit) -> np.ndarray:
    """Return the values of ``partition-column``, shape (N,), as texts."""
    table = load_splits(config)["train"].table
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
