"""Creates the evaluator of a run config: the real images, the extractor, the search for copies."""

import hashlib
from dataclasses import replace

import torch

from fedddpm_app.config import Config, ConfigError
from fedddpm_app.data.dataset import FederatedDataset, open_dataset
from fedddpm_app.data.store import SPLITS, cache_folder
from fedddpm_app.device import resolve_device
from fedddpm_app.evaluation.copies import CopyDetector
from fedddpm_app.evaluation.evaluator import Evaluator
from fedddpm_app.evaluation.extractors import Extractor, create_extractor
from fedddpm_app.evaluation.extractors.fitted import FOLDER
from fedddpm_app.evaluation.reference import RealImages, Reference


def create_evaluator(config: Config) -> Evaluator:
    """Create the evaluator that compares generated images with the run's real ones; networks are trained on first use.

    The search for copies uses the images that the clients train on, and the test split as the held-out images.

    Raises
    ------
    ConfigError
        If the data, the extractor or its weights are missing, or the cache cannot be written.
    """
    dataset, settings = open_dataset(config.data, config.run.seed), config.evaluation
    missing = [split for split in SPLITS if split not in dataset.splits]
    if missing:
        raise ConfigError(
            f"eval-images = {settings.eval_images} and eval-final-images = {settings.eval_final_images}, but this host "
            f'has no {missing[0]} split to compare with (partition = "sites", dataset = "{config.data.dataset}"): set '
            "both to 0, and evaluate afterwards, on a host that has images: `fedddpm evaluate RUN --dataset "
            "path:/a/folder`."
        )
    train, test = (dataset.split(name) for name in SPLITS)
    digests = {"train": train.info.digest, "test": test.info.digest}
    real = RealImages(train.data, test.data, digests, train.info.class_names)
    folder = cache_folder(config.data)
    try:
        extractor = _extractor(config, real)
        labelled = real.train.labels is not None and real.test.labels is not None
        is_classifier = extractor.name == "classifier"
        classifier = extractor if is_classifier else _extractor(config, real, "classifier") if labelled else None
        split, conditional = config.evaluation.eval_reference, config.data.class_conditional
        reference = Reference(real, split, extractor, classifier, folder, conditional=conditional)
        return Evaluator(reference, lambda: _detector(config, dataset, real))
    except OSError as error:
        raise ConfigError(
            f'cache-dir = "{config.data.cache_dir}": {folder} cannot be written ({error}); give a folder in which you '
            "may write."
        ) from error


def without_partition(config: Config) -> Config:
    """Return the config of a model that was trained on all of the training split, by one client."""
    data = replace(config.data, partition="iid", num_clients=1, held_out_fraction=0.0)
    return replace(config, data=replace(data, min_partition_size=1, max_examples_per_client=2**62))


def _extractor(config: Config, real: RealImages, name: str | None = None) -> Extractor:
    return create_extractor(
        name or config.evaluation.eval_extractor,
        train=real.train,
        data_digest=real.digests["train"][:16],
        cache_dir=cache_folder(config.data) / FOLDER,
        device=resolve_device(config.run.device),
        inception_weights=config.evaluation.inception_weights,
    )


def _detector(config: Config, dataset: FederatedDataset, real: RealImages) -> CopyDetector:
    rows, mirrored = torch.cat([client.train for client in dataset.clients]), config.data.horizontal_flip
    sets = "".join(real.digests.values()).encode() + rows.numpy().tobytes()
    digest = hashlib.sha256(sets + b"mirrored" * mirrored).hexdigest()
    return CopyDetector(
        real.train.images[rows],
        real.test.images,
        neighbours=config.evaluation.memorization_neighbours,
        rate=config.evaluation.memorization_rate,
        digest=digest[:16],
        cache_dir=cache_folder(config.data),
        mirrored=mirrored,
    )
