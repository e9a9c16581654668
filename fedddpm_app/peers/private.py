"""A peer's own images as the means of its scores, with the embedder that ``pdfed-embedder`` names."""

from collections.abc import MutableMapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fedddpm_app.config import Config
from fedddpm_app.device import resolve_device
from fedddpm_app.diffusion.images import ImageBatch, to_uint8
from fedddpm_app.evaluation.extractors import Extractor, Pretrained, fit_pixels_pca
from fedddpm_app.peers.score import LEAST, PrivateScore, embedder_of
from fedddpm_app.training.task import Task, TrainingData

_known: MutableMapping[Task, dict[int, PrivateScore]] = WeakKeyDictionary()  # in this process, by partition


def private_score(config: Config, task: Task, partition_id: int) -> PrivateScore:
    """Return the scores of a client's own images; their features are computed once in a process.

    The distance is that to its held-out images. A small client has one of them, or none: a covariance needs two, so its
    distance is that to its training images.

    Raises
    ------
    ValueError
        If the client has too few images for a score.
    """
    scores = _known.setdefault(task, {})
    if partition_id not in scores:
        train, held_out = _all(task.train_data(partition_id)), _all(task.held_out_data(partition_id))
        embedder = embedder_of(_extractor(config, train.images))
        reference = held_out.images if len(held_out.images) >= LEAST else train.images
        scores[partition_id] = PrivateScore(train.images, train.labels, reference, embedder)
    return scores[partition_id]


def check_embedder(config: Config) -> None:
    """Raise ``ConfigError`` if the embedder that ``pdfed-embedder`` names needs weights that are not given."""
    if wanted := _pretrained(config):
        wanted.check(config.evaluation.inception_weights)


def _extractor(config: Config, train: Tensor) -> Extractor:
    """Create the extractor; ``pixels-pca`` is fitted to ``train``."""
    device = resolve_device(config.run.device)
    if wanted := _pretrained(config):
        return wanted.load(config.evaluation.inception_weights, device)
    if len(train) < 2:
        raise ValueError(f'pdfed-embedder = "pixels-pca" needs two training images, but there are {len(train)}')
    return fit_pixels_pca(to_uint8(train), device)


def _pretrained(config: Config) -> Pretrained | None:
    name = config.pdfed.embedder
    return None if name == "pixels-pca" else Pretrained("pdfed-embedder", name, instead="pixels-pca")


def _all(data: TrainingData) -> ImageBatch:
    """Return all images of a data set; a set without images has none of any shape."""
    batch: ImageBatch = data.batch(torch.arange(len(data), device=data.device))
    return batch
