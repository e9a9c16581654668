import dataclasses

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from fedddpm_app.config import ConfigError
from fedddpm_app.data.sources import load_source
from fedddpm_app.data.tensors import load_client_data, load_test_data, to_tensors


def all_clients(data, seed=0):
    return [load_client_data(data, seed, i) for i in range(data.num_clients)]


def test_digits_are_split_without_loss_and_pixels_are_exact(config):
    from sklearn.datasets import load_digits

    clients, test = all_clients(config.data), load_test_data(config.data)
    parts = [part for client in clients for part in (client.train, client.held_out)] + [test]
    images = torch.cat([part.images for part in parts]).flatten(1)
    assert len(images) == 1797
    expected = np.rint(load_digits().images * (255 / 16)).astype(np.uint8).reshape(1797, 64)
    assert sorted(images.numpy().tolist()) == sorted(expected.tolist())
    assert sorted(torch.bincount(test.labels).tolist())[0] >= 34  # stratified: about 36 of each class


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_disjoint_classes_deal_all_classes_two_or_three_each(config, seed):
    held = [set(client.train.labels.tolist()) for client in all_clients(config.data, seed)]
    assert sorted(len(classes) for classes in held) == [2, 2, 3, 3]
    assert set.union(*held) == set(range(10))


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "pathological", "disjoint-classes"])
def test_partitions_are_disjoint_and_follow_the_seed(config, partition):
    data = dataclasses.replace(config.data, partition=partition, dirichlet_alpha=1.0)
    first, again, other = all_clients(data), all_clients(data), all_clients(data, seed=1)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.train.images, b.train.images)
        assert len(a.held_out) == round(0.1 * (len(a.train) + len(a.held_out)))
    assert any(not torch.equal(a.train.images, c.train.images) for a, c in zip(first, other, strict=True))
    assert sum(len(c.train) + len(c.held_out) for c in first) <= 1437


def test_iid_clients_hold_every_class(config):
    data = dataclasses.replace(config.data, partition="iid")
    assert all(set(client.train.labels.tolist()) == set(range(10)) for client in all_clients(data))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_clients": 11}, "use fewer clients"),
        ({"min_partition_size": 1000}, "min-partition-size = 1000"),
        ({"num_classes": 5}, "use num-classes = 10"),
        ({"dataset": "path:/nowhere/at/all"}, "there is no such folder"),
        ({"partition": "dirichlet", "dirichlet_alpha": 0.001, "min_partition_size": 355}, "larger dirichlet-alpha"),
    ],
)
def test_data_that_cannot_be_used_say_what_to_change(config, changes, says):
    with pytest.raises(ConfigError, match=says):
        all_clients(dataclasses.replace(config.data, **changes))


def test_a_hub_data_set_without_network_says_how_to_give_a_folder(config, monkeypatch):
    def no_network(name):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", no_network)
    with pytest.raises(ConfigError, match=r'dataset = "some/hub-set".*"path:/absolute/folder"'):
        load_source("some/hub-set")


@pytest.fixture
def folder_of_images(tmp_path):
    """Two classes of 30 random 10x12 RGB pictures each."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for k in range(30):
            Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(tmp_path / label / f"{k}.png")
    return tmp_path


def test_a_folder_of_images_trains(folder_of_images, config):
    data = dataclasses.replace(
        config.data, dataset=f"path:{folder_of_images}", partition="iid", num_clients=2, num_classes=2, image_channels=3
    )
    client = load_client_data(data, 0, 0)
    assert client.train.images.shape[1:] == (3, 8, 8)
    assert set(client.train.labels.tolist()) == {0, 1}
    assert len(load_test_data(data)) == 12


@pytest.mark.parametrize("kind", ["parquet", "save_to_disk"])
def test_tables_with_other_column_names_load_exactly(tmp_path, config, kind):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(num_classes=4)})
    table = datasets.Dataset.from_dict({"img": list(pixels), "fine_label": [k % 4 for k in range(40)]}, features)
    if kind == "parquet":
        table.to_parquet(tmp_path / "train-0.parquet")
        table.select(range(8)).to_parquet(tmp_path / "test-0.parquet")
    else:
        datasets.DatasetDict(train=table, test=table.select(range(8))).save_to_disk(str(tmp_path))
    splits = load_source(f"path:{tmp_path}")
    tensors = to_tensors(splits["train"], config.data)
    assert torch.equal(tensors.images[:, 0], torch.from_numpy(pixels))
    assert tensors.labels.tolist() == [k % 4 for k in range(40)]
    assert len(splits["test"]) == 8


def test_a_conditional_model_needs_labels(tmp_path, config):
    table = datasets.Dataset.from_dict(
        {"image": [np.zeros((8, 8), np.uint8)] * 100}, datasets.Features({"image": datasets.Image()})
    )
    table.save_to_disk(str(tmp_path))
    data = dataclasses.replace(config.data, dataset=f"path:{tmp_path}", class_conditional=True, partition="iid")
    with pytest.raises(ConfigError, match="class-conditional = true needs labels"):
        load_client_data(data, 0, 0)
    with pytest.raises(ConfigError, match='use "iid"'):
        load_client_data(dataclasses.replace(data, class_conditional=False, partition="dirichlet"), 0, 0)
