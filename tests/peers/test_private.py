"""A client's own images as the measure of samples: its own embedder, made once, and labels of samples."""

from dataclasses import replace

import pytest
import torch

from fedddpm_app.config import load_config
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.peers import private
from fedddpm_app.peers.private import balanced_labels, private_score


@pytest.fixture
def task(run_config):
    return DiffusionTask(load_config(run_config | {"class-conditional": True}))


def images(task, partition, count):
    batch = task.train_data(partition).batch(torch.arange(count))
    return batch.images, batch.labels


def test_only_the_owner_recognises_its_training_images(task):
    copies, labels = images(task, 0, 30)
    own, other = (private_score(task.config, task, partition).score(copies, labels) for partition in (0, 1))
    assert own.num_confirmed == 30
    assert own.novelty == pytest.approx(1000.0)
    assert sorted(own.matches) == list(range(30))
    assert other.num_confirmed < 3


def test_a_score_is_made_once_for_each_client(task, monkeypatch):
    made = []
    original = private.fit_pixels_pca
    monkeypatch.setattr(private, "fit_pixels_pca", lambda *given: made.append(given) or original(*given))
    scores = [private_score(task.config, task, partition) for partition in (0, 1, 0, 1)]
    assert scores[0] is scores[2]
    assert scores[0] is not scores[1]
    assert [len(given[0]) for given in made] == [len(task.train_data(partition)) for partition in (0, 1)]
    assert private_score(task.config, DiffusionTask(task.config), 0) is not scores[0]


def test_the_embedder_is_the_one_of_the_key(task):
    pytest.importorskip("timm")
    config = replace(task.config, pdfed=replace(task.config.pdfed, embedder="efficientnet-lite0"))
    samples, labels = images(task, 1, 20)
    lite = private_score(config, DiffusionTask(config), 0).score(samples, labels)
    assert lite.distance != private_score(task.config, task, 0).score(samples, labels).distance


@pytest.mark.parametrize(("count", "classes", "each"), [(10, 5, [2] * 5), (7, 3, [3, 2, 2]), (2, 4, [1, 0, 1, 0])])
def test_labels_are_as_even_as_they_can_be(count, classes, each):
    labels = balanced_labels(count, classes)
    assert labels.bincount(minlength=classes).tolist() == each
    assert labels.tolist() == sorted(labels.tolist())
