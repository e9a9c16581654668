"""A client's own images as the measure of samples: its own embedder, made once, and labels of samples."""

from dataclasses import replace

import pytest
import torch

from fedddpm_app.config import load_config
from fedddpm_app.diffusion.labels import balanced_labels
from fedddpm_app.evaluation.distances import frechet_distance
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.peers import private
from fedddpm_app.peers.private import private_score
from fedddpm_app.training.task import Subset


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


@pytest.mark.parametrize("held_out", [0, 1, 2])
def test_a_client_with_too_few_held_out_images_measures_the_distance_to_its_training_images(task, held_out):
    """A covariance needs two images."""
    small = DiffusionTask(task.config)
    train, few = small.train_data(0), Subset(small.held_out_data(0), torch.arange(held_out))
    small.held_out_data = lambda partition: few
    samples, labels = images(task, 1, 20)
    found = private_score(task.config, small, 0).score(samples, labels)
    reference = few if held_out == 2 else train
    embed = private_score(task.config, small, 0)._embed
    expected = frechet_distance(embed(samples), embed(reference.batch(torch.arange(len(reference))).images))
    assert found.distance == pytest.approx(expected, rel=1e-9)


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
