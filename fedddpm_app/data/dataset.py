"""The images of a run as one object: its splits, and the rows of every client."""

import functools
import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedddpm_app.config import MAX_CLASSES, ConfigError, DataConfig
from fedddpm_app.data.partitioning import check_size, partition_rows
from fedddpm_app.data.sites import SITE, SITES, is_site, keeping_names, load_splits, of_site
from fedddpm_app.data.splits import LABEL
from fedddpm_app.data.store import StoredSplit, load_stored
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.disk.arrow import stored_cells
from fedddpm_app.seeding import derive_seed

PARTITION = "partition"


@dataclass(frozen=True)
class ClientRows:
    """One client's images, as rows of the training split.

    Attributes
    ----------
    train, held_out : Tensor
        int64: the rows that it trains on, and the held-out rows that it only evaluates on.
    """

    train: Tensor
    held_out: Tensor


class FederatedDataset:
    """The decoded images of a data config, and their partition over the clients. Images are read on first use.

    Every property raises ``ConfigError`` if the data cannot be read or used, or the partition cannot be made.

    Parameters
    ----------
    config : DataConfig
        The data set and its partition.
    seed : int
        The run's seed; it determines the partition.
    data_path : str
        The folder of the only client whose images this host has; if empty, ``config`` gives the source.
    """

    def __init__(self, config: DataConfig, seed: int, data_path: str = "") -> None:
        self.config = of_site(config, data_path) if data_path else config
        self.seed = seed

    @property
    def splits(self) -> dict[str, StoredSplit]:
        """The decoded splits on this host: ``train`` and ``test``; one may be missing with ``partition = "sites"``."""
        with keeping_names(self.config):
            return load_stored(self.config)

    @property
    def train(self) -> ImageTensors:
        """The training split on the CPU, mapped from the cache; ``client`` gives each client's rows of it."""
        return self.split("train").data

    @property
    def has_train(self) -> bool:
        """Whether this host has the training split; in a deployment with ``partition = "sites"`` no host has it."""
        return "train" in self.splits

    @property
    def test(self) -> ImageTensors | None:
        """The global test split, which no client trains on; None if this host has no test split."""
        return self.split("test").data if "test" in self.splits else None

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, by label; empty if the source has none."""
        return self.split("train").info.class_names

    def client(self, partition_id: int) -> ClientRows:
        """Return one client's rows of the training split; on a site's host, of the site's own images."""
        if not is_site(self.config):
            return self.clients[partition_id]
        return self._with_held_out(self._site_rows(np.arange(len(self.train)), partition_id))

    @functools.cached_property
    def clients(self) -> list[ClientRows]:
        """Every client's rows of the training split, disjoint."""
        stored, config = self.split("train"), self.config
        if config.partition == SITES:
            owner = np.asarray(load_splits(config)["train"].table[SITE])[stored.rows]
            parts = [self._site_rows(np.flatnonzero(owner == k), k) for k in range(config.num_clients)]
        else:
            labels = None if stored.data.labels is None else stored.data.labels.numpy()
            natural = self._natural_column(stored) if config.partition == "natural" else None
            parts = partition_rows(labels, natural, len(stored.data), config, self.seed)
        return [self._with_held_out(part) for part in parts]

    @property
    def split_digests(self) -> dict[str, str]:
        """The SHA-256, 16 digits, of the pixels and labels of each split on this host, by its name."""
        return {name: stored.info.digest[:16] for name, stored in self.splits.items()}

    @property
    def digests(self) -> dict[str, str]:
        """The digests of the splits and, if this host has the training split, of every client's rows of it."""
        return self.split_digests | ({PARTITION: self._partition_digest} if self.has_train else {})

    @functools.cached_property
    def _partition_digest(self) -> str:
        rows = [part.numpy() for client in self.clients for part in (client.train, client.held_out)]
        sizes = np.asarray([len(part) for part in rows])
        return hashlib.sha256(np.concatenate([sizes, *rows]).astype("<i8").tobytes()).hexdigest()[:16]

    @property
    def label_table(self) -> Tensor:
        """The number of training images of each class on each client, int64 (``num_clients``, ``num_classes``).

        Data without labels give the shape (``num_clients``, 1).
        """
        labels = self.train.labels
        if labels is None:
            return torch.tensor([[len(client.train)] for client in self.clients])
        classes = self.config.num_classes
        return torch.stack([labels[client.train].bincount(minlength=classes) for client in self.clients])

    @property
    def num_unassigned(self) -> int:
        """The number of training images that no client has; some partitions leave images out."""
        return len(self.train) - sum(len(client.train) + len(client.held_out) for client in self.clients)

    def check(self) -> list[int]:
        """Check that all data can be used, and return the number of training images on each client."""
        _ = self.test
        return [len(client.train) for client in self.clients]

    def split(self, name: str) -> StoredSplit:
        """Return a decoded split; raise ``ConfigError`` if this host does not have it."""
        if name not in self.splits:
            raise ConfigError(
                f'dataset = "{self.config.dataset}", partition = "{SITES}": there is no {name} split on this host. In '
                'a simulation, give "path:" and a folder that holds one folder per client and one named "test"; in a '
                "deployment, start every SuperNode with data-path=... in its --node-config."
            )
        stored = self.splits[name]
        _check_labels(name, stored, self.config)
        return stored

    def _site_rows(self, rows: np.ndarray, partition_id: int) -> np.ndarray:
        """Return a site's rows, shuffled by a seed of the site; the order does not depend on other sites."""
        check_size(len(rows), partition_id, self.config)
        generator = np.random.default_rng(derive_seed(self.seed, "partition", partition_id))
        return rows[generator.permutation(len(rows))]

    def _with_held_out(self, part: np.ndarray) -> ClientRows:
        """Split a client's rows into training and held-out rows.

        With a positive ``held_out_fraction`` at least one image is held out; at least one image stays for training.
        """
        wanted = len(part) * self.config.held_out_fraction
        count = min(max(1, round(wanted)) if wanted else 0, len(part) - 1)
        rows = torch.from_numpy(part)
        return ClientRows(rows[count:], rows[:count])

    def _natural_column(self, stored: StoredSplit) -> np.ndarray:
        """Return the values of ``partition-column``, shape (N,), as texts."""
        config, table = self.config, load_splits(self.config)["train"].table
        if config.partition_column not in table.column_names:
            raise ConfigError(
                f'partition-column = "{config.partition_column}" is not a column of dataset = "{config.dataset}" (its '
                f'label column is named "{LABEL}"): use one of {", ".join(table.column_names)}, or another partition.'
            )
        column = stored_cells(table, config.partition_column)
        values = [str(column[row]) for row in stored.rows.tolist()]
        missing = sum(value in ("", "None", "nan") for value in values)
        if missing:
            raise ConfigError(
                f'partition-column = "{config.partition_column}" is empty for {missing} images: fill it, leave these '
                "images out, or use another partition."
            )
        return np.asarray(values)


@functools.lru_cache(maxsize=4)
def open_dataset(config: DataConfig, seed: int, data_path: str = "") -> FederatedDataset:
    """Return the data set of a run; calls with equal arguments share one object in a process."""
    return FederatedDataset(config, seed, data_path)


def _check_labels(split: str, stored: StoredSplit, config: DataConfig) -> None:
    """Raise ``ConfigError`` if a conditional model lacks labels, or a label is outside [0, num_classes)."""
    labels, without = stored.data.labels, stored.info.unlabelled
    if labels is None:
        if config.class_conditional:
            at = f" (sites without labels: {', '.join(without[:10])})" if without else ""
            raise ConfigError(f"class-conditional = true needs labels, which the {split} split lacks{at}: use false.")
        return
    least, most = int(labels.min()), int(labels.max())
    if least < 0:
        raise ConfigError(
            f'dataset = "{config.dataset}" has the label {least}, but labels must be 0 to num-classes - 1: leave '
            "unlabelled images out, or store the data set without labels."
        )
    if most >= MAX_CLASSES:
        raise ConfigError(
            f'dataset = "{config.dataset}" has the label {most}, above {MAX_CLASSES - 1}: number the classes from 0, '
            "or store the data set without labels."
        )
    if most >= config.num_classes:
        raise ConfigError(
            f"num-classes = {config.num_classes}, but the data have labels {least} to {most}: "
            f"use num-classes = {most + 1} and labels from 0."
        )
