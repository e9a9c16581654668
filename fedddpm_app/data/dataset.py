"""The images of a run as one object: its splits, and what every client holds of them."""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedddpm_app.config import ConfigError, DataConfig
from fedddpm_app.data.partitioning import check_size, partition_rows
from fedddpm_app.data.sites import SITE, SITES, is_site, load_splits, of_site
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


class FederatedDataset:
    """The decoded images of a data config, and their partition over the clients; everything is read on first use.

    Every property raises ``ConfigError`` where the data cannot be read or used, or the partition cannot be made.

    Parameters
    ----------
    config : DataConfig
        Which images, and how they are split.
    seed : int
        The run's; decides the partition.
    data_path : str
        The folder of the one client whose images this host has; empty where ``config`` says where they are.
    """

    def __init__(self, config: DataConfig, seed: int, data_path: str = "") -> None:
        self.config = of_site(config, data_path) if data_path else config
        self.seed = seed

    @property
    def splits(self) -> dict[str, StoredSplit]:
        """The decoded splits that this host has: ``train`` and ``test``, fewer with ``partition = "sites"``."""
        return load_stored(self.config)

    @property
    def train(self) -> ImageTensors:
        """The training split on the CPU, mapped from the cache; ``client`` says what is whose."""
        return self.split("train").data

    @property
    def has_train(self) -> bool:
        """Whether this host has the training split; in a deployment with ``partition = "sites"`` none has."""
        return "train" in self.splits

    @property
    def test(self) -> ImageTensors | None:
        """The global test split, which no client trains on; None where there are sites only."""
        return self.split("test").data if "test" in self.splits else None

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, by label; empty where the source has none."""
        return self.split("train").info.class_names

    def client(self, partition_id: int) -> ClientRows:
        """Return one client's rows of the training split, which may be of its own site's images."""
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
    def label_table(self) -> Tensor:
        """The training images of each class on each client, int64 (``num_clients``, ``num_classes``).

        Of data without labels (``num_clients``, 1).
        """
        labels = self.train.labels
        if labels is None:
            return torch.tensor([[len(client.train)] for client in self.clients])
        classes = self.config.num_classes
        return torch.stack([labels[client.train].bincount(minlength=classes) for client in self.clients])

    @property
    def num_unassigned(self) -> int:
        """Images of the training split that no client has, as some partitions leave some out."""
        return len(self.train) - sum(len(client.train) + len(client.held_out) for client in self.clients)

    def check(self) -> list[int]:
        """Return the number of training images on each client, after checking that all data can be used."""
        _ = self.test
        return [len(client.train) for client in self.clients]

    def split(self, name: str) -> StoredSplit:
        """Return a decoded split, which must be there."""
        if name not in self.splits:
            raise ConfigError(
                f'dataset = "{self.config.dataset}", partition = "{SITES}": there is no {name} split on this host; in '
                'a simulation give "path:" and a folder that holds one folder per client and one named "test", in a '
                "deployment start every SuperNode with data-path=... in its --node-config."
            )
        stored = self.splits[name]
        _check_labels(stored.data.labels, self.config)
        return stored

    def _site_rows(self, rows: np.ndarray, partition_id: int) -> np.ndarray:
        """Return a site's rows in the shuffled order that its seed gives, whatever else lies beside them."""
        check_size(len(rows), partition_id, self.config)
        generator = np.random.default_rng(derive_seed(self.seed, "partition", partition_id))
        return rows[generator.permutation(len(rows))]

    def _with_held_out(self, part: np.ndarray) -> ClientRows:
        """Cut the held-out share off a client's rows: at least one image if any are asked for, never the last one."""
        wanted = len(part) * self.config.held_out_fraction
        count = min(max(1, round(wanted)) if wanted else 0, len(part) - 1)
        rows = torch.from_numpy(part)
        return ClientRows(rows[count:], rows[:count])

    def _natural_column(self, stored: StoredSplit) -> np.ndarray:
        """Return the values of ``partition-column``, shape (N,), as texts."""
        config, table = self.config, load_splits(self.config)["train"].table
        if config.partition_column not in table.column_names:
            raise ConfigError(
                f'partition-column = "{config.partition_column}" is not a column of dataset = "{config.dataset}" (the '
                f'column of labels is "{LABEL}" here): use one of {", ".join(table.column_names)}, or another '
                "partition."
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


@functools.lru_cache(maxsize=4)
def open_dataset(config: DataConfig, seed: int, data_path: str = "") -> FederatedDataset:
    """Return the data set of a run; one object for everything in this process that asks for the same."""
    return FederatedDataset(config, seed, data_path)


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
