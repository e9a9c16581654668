"""Splitting the training images over the clients, with flwr-datasets' partitioners."""

import contextlib
import io

import numpy as np
from datasets import Dataset
from flwr_datasets.partitioner import (
    DirichletPartitioner,
    IidPartitioner,
    NaturalIdPartitioner,
    Partitioner,
    PathologicalPartitioner,
)

from fedddpm_app.config import ConfigError, DataConfig
from fedddpm_app.seeding import derive_seed

_CLIENT = "client"


def partition_dataset(train: Dataset, config: DataConfig, seed: int) -> Partitioner:
    """Split a data set into ``num_clients`` partitions.

    Parameters
    ----------
    train : Dataset
        With a ``label`` column unless ``partition`` is ``iid``.
    config : DataConfig
        ``iid``: shuffled, equal parts. ``dirichlet``: per class, shares from Dirichlet(alpha).
        ``pathological``: ``classes_per_client`` classes on every client, drawn at random.
        ``disjoint-classes``: the classes are dealt out like cards, so that no two clients share one and
        all are used (10 classes on 4 clients: 3, 3, 2, 2).
    seed : int
        The run's seed.

    Returns
    -------
    Partitioner
        ``load_partition(i)`` gives partition i.

    Raises
    ------
    ConfigError
        When a partition would be smaller than ``min_partition_size`` or larger than ``max_examples_per_client``.
    """
    if config.partition != "iid" and "label" not in train.column_names:
        raise ConfigError(f'partition = "{config.partition}" needs labels, which the data set lacks: use "iid".')
    partition_seed = derive_seed(seed, "partition") % 2**32
    train = train.shuffle(seed=partition_seed)
    partitioner: Partitioner
    match config.partition:
        case "iid":
            partitioner = IidPartitioner(config.num_clients)
        case "dirichlet":
            partitioner = DirichletPartitioner(
                config.num_clients,
                "label",
                config.dirichlet_alpha,
                min_partition_size=config.min_partition_size,
                seed=partition_seed,
            )
        case "pathological":
            partitioner = PathologicalPartitioner(
                config.num_clients, "label", config.classes_per_client, seed=partition_seed
            )
        case _:
            train = _deal_classes(train, config, partition_seed)
            partitioner = NaturalIdPartitioner(_CLIENT)
    partitioner.dataset = train
    _check_sizes(partitioner, config)
    return partitioner


def _deal_classes(train: Dataset, config: DataConfig, seed: int) -> Dataset:
    """Add the column ``client``: a shuffled deck of the classes, dealt to the clients in turn."""
    classes = np.unique(train["label"])
    if len(classes) < config.num_clients:
        raise ConfigError(
            f'partition = "disjoint-classes" with num-clients = {config.num_clients} needs as many classes, the '
            f"data have {len(classes)}: use fewer clients or another partition."
        )
    deck = np.random.default_rng(seed).permutation(classes)
    client_of = {int(label): place % config.num_clients for place, label in enumerate(deck)}
    return train.add_column(_CLIENT, [client_of[label] for label in train["label"]])


def _check_sizes(partitioner: Partitioner, config: DataConfig) -> None:
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # flwr-datasets draws a bar that no option turns off
            sizes = [len(partitioner.load_partition(i)) for i in range(config.num_clients)]
    except ValueError as error:
        raise ConfigError(
            f'partition = "{config.partition}" cannot be drawn ({error}): use fewer clients, a larger '
            "dirichlet-alpha or a smaller min-partition-size."
        ) from error
    for partition_id, size in enumerate(sizes):
        if size < config.min_partition_size:
            raise ConfigError(
                f"client {partition_id} would hold {size} images, fewer than min-partition-size = "
                f"{config.min_partition_size}: use fewer clients, a less skewed partition or a smaller minimum."
            )
        if size > config.max_examples_per_client:
            raise ConfigError(
                f"client {partition_id} would hold {size} images, more than max-examples-per-client = "
                f"{config.max_examples_per_client}: use {size} or more."
            )
