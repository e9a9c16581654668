"""From a run config to its evaluator: what is trained on what, what is compared with what."""

import dataclasses

import pytest
import torch

from fedddpm_app.config import ConfigError
from fedddpm_app.data.dataset import open_dataset
from fedddpm_app.evaluation.extractors import load_classifier
from fedddpm_app.evaluation.memorization import nearest_training
from fedddpm_app.evaluation.metrics import SamplingInfo
from fedddpm_app.experiment.evaluators import create_evaluator, without_partition


def changed(config, **data):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


@pytest.mark.slow
def test_the_extractor_is_trained_on_the_training_split(config, tmp_path):
    evaluator = create_evaluator(config)
    expected = load_classifier(open_dataset(config.data, 0).train, "other", tmp_path, torch.device("cpu"))
    assert evaluator.reference.extractor.digest == expected.digest
    assert evaluator.reference.classifier is evaluator.reference.extractor
    assert torch.equal(evaluator.reference.images.images, open_dataset(config.data, 0).test.images)


def test_copies_are_looked_for_among_what_clients_train_on_with_the_test_split_as_yardstick(config):
    detector = create_evaluator(config).detector
    train, test = open_dataset(config.data, 0).train, open_dataset(config.data, 0).test
    rows = torch.cat([client.train for client in open_dataset(config.data, config.run.seed).clients])
    assert torch.equal(detector.train, train.images[rows])
    expected = nearest_training(test.images, train.images[rows], config.evaluation.memorization_neighbours)
    assert torch.equal(detector.held_out_ratios, expected.ratio[expected.distance > 0])


def test_what_clients_train_on_is_part_of_the_cache_name(config):
    whole = create_evaluator(without_partition(config)).detector
    held_back = create_evaluator(changed(config, held_out_fraction=0.5)).detector
    assert len(whole.train) == 1437
    assert whole.digest != held_back.digest
    assert not torch.equal(whole.held_out_ratios, held_back.held_out_ratios)


def test_copies_of_mirror_images_count_where_models_are_trained_on_them(config):
    once, twice = (create_evaluator(changed(config, horizontal_flip=flip)).detector for flip in (False, True))
    assert once.digest != twice.digest
    assert twice.num_train == len(once.train) == len(twice.train) / 2
    shares = {}
    for detector in (once, twice):
        for name, images in (("images", once.train[:50]), ("mirror images", once.train[:50].flip(-1))):
            search = detector.start()
            search.add(images)
            metric = search.metric("train", SamplingInfo("ddim", 1, "ema"))
            shares.setdefault(name, []).append(metric.value)
            assert metric.reference_n == metric.floor_reference_n == len(once.train)
    assert shares["images"] == [1, 1]
    assert shares["mirror images"][0] < 0.1
    assert shares["mirror images"][1] == 1


def test_another_extractor_has_the_classifier_beside_it(config):
    settings = dataclasses.replace(config.evaluation, eval_extractor="pixels-pca", eval_reference="train")
    evaluator = create_evaluator(dataclasses.replace(config, evaluation=settings))
    assert evaluator.reference.extractor.name == "pixels-pca"
    assert evaluator.reference.classifier.name == "classifier"
    assert len(evaluator.reference.images) == 1437


def test_a_cache_that_cannot_be_written_is_named(config, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedddpm_app.experiment.evaluators.create_extractor", full)
    with pytest.raises(ConfigError, match=r"cache-dir = .*No space left"):
        create_evaluator(config)
