"""Stateless seeds: every random choice derives from (seed, purpose, indices)."""

import zlib

import numpy as np


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """Derive an independent seed for one random choice.

    Results then depend neither on the order in which clients run, nor on how many share a
    process, nor on a resume.

    Parameters
    ----------
    seed : int
        The run's seed, in [0, 2**32).
    purpose : str
        What the randomness is for, such as ``"local-train"``.
    *indices : int
        What tells this choice from others of its purpose (round, partition, image), each in [0, 2**32).

    Returns
    -------
    int
        In [0, 2**63), valid for ``torch.Generator.manual_seed`` and ``numpy.random.default_rng``.
    """
    # SeedSequence takes [x] and [x, 0] for the same: the count of indices tells them apart.
    entropy = [seed, zlib.crc32(purpose.encode()), len(indices), *indices]
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def split_seed(seed: int, count: int) -> list[int]:
    """Split a derived seed into ``count`` independent ones, for the random streams of one piece of work.

    Each is in [0, 2**63).
    """
    states = np.random.SeedSequence(seed).generate_state(count, np.uint64)
    return [int(state >> np.uint64(1)) for state in states]
