"""Split the training images over the clients, with flwr-datasets' partitioners."""

import contextlib
import io
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset

from fedddpm_app.config import ConfigError, DataConfig
from fedddpm_app.data.splits import LABEL
from fedddpm_app.seeding import derive_seed

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

_ROW = "row"
_CLIENT = "client"
_NEEDS_LABELS = ("dirichlet", "pathological", "shards", "disjoint-classes")
_ADVICE = {
    "dirichlet": "use fewer clients, a larger dirichlet-alpha or a smaller min-partition-size",
    "pathological": "use a classes-per-client that is at most the number of classes, or more clients",
    "shards": "use fewer clients or a smaller shards-per-client",
}
_PARTITIONER_ERRORS = (ValueError, IndexError, KeyError, ZeroDivisionError)


def partition_rows(
    labels: np.ndarray | None, natural: np.ndarray | None, count: int, config: DataConfig, seed: int
) -> list[np.ndarray]:
    """Split ``count`` images into ``num_clients`` disjoint partitions, each in shuffled order.

    Parameters
    ----------
    labels : np.ndarray or None
        int64, shape (N,); needed by the partitions that depend on classes.
    natural : np.ndarray or None
        Shape (N,); the column that ``natural`` splits by.
    count : int
        N, the number of images.
    config : DataConfig
        ``partition``:

        * ``iid``: every client gets an equal part.
        * ``dirichlet``: the clients' shares of each class are sampled from Dirichlet(``dirichlet_alpha``).
        * ``pathological``: every client gets ``classes_per_client`` classes, chosen at random.
        * ``shards``: the images are sorted by class and cut into shards of equal size, and every client gets
          ``shards_per_client`` shards (McMahan et al. 2017). No client gets the images that remain after the cut.
        * ``disjoint-classes``: the classes are shuffled and assigned to the clients in turn. All classes are used,
          and no two clients share a class (10 classes on 4 clients: 3, 3, 2, 2).
        * ``quantity-skew``: all clients have the same mix of classes; their sizes are sampled from
          Dirichlet(``dirichlet_alpha``).
        * ``natural``: the values of ``partition_column`` (writers, hospitals) are shuffled and assigned to the
          clients in turn. With as many clients as values, each client has one value.
        * ``sites``: not made here, since the clients have their own folders; see ``data.sites``.
    seed : int
        The run's seed.

    Returns
    -------
    list of np.ndarray
        int64 rows in [0, N), one array per client.

    Raises
    ------
    ConfigError
        When the partition cannot be made, or a client would hold fewer images than ``min_partition_size`` or more
        images than ``max_examples_per_client``.
    """
    _check_possible(labels, natural, count, config)
    partition_seed = derive_seed(seed, "partition") % 2**32
    columns = {_ROW: np.arange(count)} | ({} if labels is None else {LABEL: labels})
    train = Dataset.from_dict(columns).shuffle(seed=partition_seed)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # flwr-datasets shows a bar that no option turns off
            partitioner = _partitioner(train, natural, config, partition_seed)
            rows = [np.asarray(partitioner.load_partition(i)[:][_ROW], np.int64) for i in range(config.num_clients)]
    except _PARTITIONER_ERRORS as error:
        advice = _ADVICE.get(config.partition, "use fewer clients or another partition")
        raise ConfigError(f'partition = "{config.partition}" cannot be made ({error}): {advice}.') from error
    for partition_id, part in enumerate(rows):
        check_size(len(part), partition_id, config)
    return rows


def _partitioner(train: Dataset, natural: np.ndarray | None, config: DataConfig, seed: int) -> "Partitioner":
    """Return a flwr-datasets partitioner with the shuffled images as its data set."""
    from flwr_datasets import partitioner as kinds  # it imports matplotlib, which a site does not need

    clients = config.num_clients
    partitioner: Partitioner
    match config.partition:
        case "iid":
            partitioner = kinds.IidPartitioner(clients)
        case "dirichlet":
            least = config.min_partition_size
            partitioner = kinds.DirichletPartitioner(
                clients, LABEL, config.dirichlet_alpha, min_partition_size=least, self_balancing=False, seed=seed
            )
        case "pathological":
            partitioner = kinds.PathologicalPartitioner(clients, LABEL, config.classes_per_client, seed=seed)
        case "shards":
            partitioner = kinds.ShardPartitioner(clients, LABEL, config.shards_per_client, seed=seed)
        case "quantity-skew":
            partitioner = kinds.SizePartitioner(_skewed_sizes(len(train), config, seed))
        case "natural":
            train = _assign_in_turn(train, np.asarray(natural)[train[_ROW]], config, seed)
            partitioner = kinds.NaturalIdPartitioner(_CLIENT)
        case "disjoint-classes":
            train = _assign_in_turn(train, np.asarray(train[LABEL]), config, seed)
            partitioner = kinds.NaturalIdPartitioner(_CLIENT)
        case _:
            raise ValueError("_partitioner has no case for it")
    partitioner.dataset = train
    return partitioner


def _assign_in_turn(train: Dataset, values: np.ndarray, config: DataConfig, seed: int) -> Dataset:
    """Add the column ``client``: shuffle the distinct values, and assign them to the clients in turn."""
    distinct, index = np.unique(values, return_inverse=True)
    turn = np.empty(len(distinct), np.int64)
    turn[np.random.default_rng(seed).permutation(len(distinct))] = np.arange(len(distinct))
    return train.add_column(_CLIENT, turn[index] % config.num_clients)


def _skewed_sizes(count: int, config: DataConfig, seed: int) -> list[int]:
    """Return sizes that sum to ``count``: the minimum for every client, plus shares sampled from Dirichlet(alpha)."""
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet(np.full(config.num_clients, config.dirichlet_alpha))
    free = count - config.num_clients * config.min_partition_size
    ends = np.rint(np.cumsum(shares) * free).astype(np.int64)
    ends[-1] = free
    return [int(size) + config.min_partition_size for size in np.diff(ends, prepend=0)]


def _check_possible(labels: np.ndarray | None, natural: np.ndarray | None, count: int, config: DataConfig) -> None:
    """Raise ``ConfigError`` if the partition cannot be made, as far as its settings show."""
    partition, clients = config.partition, config.num_clients
    if partition in _NEEDS_LABELS and labels is None:
        raise ConfigError(
            f'partition = "{partition}" needs labels, which the data set lacks: use partition="iid", or '
            '"quantity-skew" or "natural".'
        )
    if clients * config.min_partition_size > count:
        raise ConfigError(
            f"num-clients = {clients} with min-partition-size = {config.min_partition_size} needs "
            f"{clients * config.min_partition_size} images, but the training split holds {count}: use fewer clients "
            f"or a smaller minimum, such as min-partition-size={max(1, count // clients)}."
        )
    assigned = {"disjoint-classes": (labels, "classes"), "natural": (natural, f'values of "{config.partition_column}"')}
    values, name = assigned.get(partition, (None, ""))
    if values is not None and len(np.unique(values)) < clients:
        raise ConfigError(
            f'partition = "{partition}" with num-clients = {clients} needs at least as many {name}, but the data have '
            f"{len(np.unique(values))}: use fewer clients or another partition."
        )


def check_size(size: int, partition_id: int, config: DataConfig) -> None:
    """Raise ``ConfigError`` if a client has too few or too many images."""
    if size < config.min_partition_size:
        fix = "use fewer clients, or a less skewed partition"
        if config.partition == "sites":
            fix = "put more images into its folder"
        smaller = ", or use a smaller minimum" if config.min_partition_size > 1 else ""
        raise ConfigError(
            f"client {partition_id} would hold {size} images, fewer than min-partition-size = "
            f"{config.min_partition_size}: {fix}{smaller}."
        )
    if size > config.max_examples_per_client:
        raise ConfigError(
            f"client {partition_id} would hold {size} images, more than max-examples-per-client = "
            f"{config.max_examples_per_client}: use {size} or more."
        )
