import hashlib

import pytest
import torch

from fedddpm_app.data.store import load_stored
from fedddpm_app.evaluation.copies import CopyDetector
from fedddpm_app.evaluation.evaluator import Evaluator
from fedddpm_app.evaluation.extractors import create_extractor
from fedddpm_app.evaluation.reference import RealImages, Reference


@pytest.fixture
def real(config):
    """The digits: 1,437 training and 360 test images with labels."""
    stored = load_stored(config.data)
    return RealImages(
        stored["train"].data, stored["test"].data, {name: part.info.digest for name, part in stored.items()}
    )


@pytest.fixture
def evaluator_of(real, cache_dir):
    """Make an evaluator of the digits with the session's extractors, and its cache of all else or another one."""
    extractors = cache_dir / "extractors"

    def make(split="test", extractor="classifier", real=real, train=None, cache_dir=cache_dir):
        options = {"train": real.train, "data_digest": real.digests["train"][:16], "cache_dir": extractors}
        features = create_extractor(extractor, device=torch.device("cpu"), **options)
        labelled = real.train.labels is not None
        classifier = create_extractor("classifier", device=torch.device("cpu"), **options) if labelled else None
        classifier = features if extractor == "classifier" else classifier
        reference = Reference(real, split, features, classifier, cache_dir)
        trained_on = real.train.images if train is None else train
        digest = hashlib.sha256(trained_on.numpy().tobytes() + real.test.images.numpy().tobytes()).hexdigest()[:16]
        options = {"neighbours": 50, "rate": 0.01, "digest": digest, "cache_dir": cache_dir}
        return Evaluator(reference, lambda: CopyDetector(trained_on, real.test.images, **options))

    return make


def values(evaluation):
    return {metric.name: metric.value for metric in evaluation.metrics}
