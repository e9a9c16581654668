"""A client's part of D_aux: which images it has, the same on the server and on the client."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from fedddpm_app.apportion import labels_by_systematic_sampling, largest_remainder
from fedddpm_app.config import Config
from fedddpm_app.diffusion.sampling import SampleBatch, image_seeds, split_batches
from fedddpm_app.seeding import derive_seed

_GOLDEN = (5**0.5 - 1) / 2  # multiples of it, modulo 1, are spread as evenly as can be, however many there are


def counts_of(config: Config, sizes: Mapping[int, int]) -> list[int]:
    """Return the number of images m_i of each partition, by largest remainder; ``sizes`` has the n_i that are known.

    A client whose n_i is not known has no part.
    """
    weights = [sizes.get(partition, 0) for partition in range(config.data.num_clients)]
    return largest_remainder(config.auxiliary.size, weights) if any(weights) else weights


def batches_of(
    config: Config, partition_id: int, count: int, label_counts: Sequence[int]
) -> tuple[Tensor | None, list[SampleBatch]]:
    """Return the labels and the batches of a client's ``count`` images.

    Labels are int64, shape (``count``,), and follow the label counts; None for a model without classes. Each client
    rounds its quotas from another start, so that the classes of all clients' images follow those of all examples.
    """
    labels = None
    if config.data.class_conditional:
        labels = labels_by_systematic_sampling(count, label_counts, _start(config, partition_id))
    seeds = image_seeds(config.run.seed, "auxiliary", count, partition_id)
    return labels, split_batches(seeds, labels, min(config.auxiliary.batch_size, count) or 1)


def _start(config: Config, partition_id: int) -> float:
    """Return where a client's systematic sampling starts, in [0, 1): the first one random, the next spread evenly."""
    first = np.random.default_rng(derive_seed(config.run.seed, "auxiliary-labels")).random()
    return float((first + partition_id * _GOLDEN) % 1)


def batches_again(
    config: Config, partition_id: int, attempt: int, count: int, labels: Tensor | None
) -> list[SampleBatch]:
    """Return the batches of ``count`` images that replace others, with their ``labels``; ``attempt`` counts from 1."""
    seeds = image_seeds(config.run.seed, "auxiliary-again", count, partition_id, attempt)
    return split_batches(seeds, labels, min(config.auxiliary.batch_size, count))
