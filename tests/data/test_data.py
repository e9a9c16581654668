import dataclasses

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from fedddpm_app.config import ConfigError
from fedddpm_app.data.sources import load_source
from fedddpm_app.data.tensors import check_data, load_client_data, load_test_data, to_tensors


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


def blank_images(count):
    features = datasets.Features({"image": datasets.Image()})
    return datasets.Dataset.from_dict({"image": [np.zeros((4, 4), np.uint8)] * count}, features)


def store(folder, labels, feature, image=None, images=None):
    """A save_to_disk folder of 4x4 pictures with a label column of the given type; no test split."""
    rng = np.random.default_rng(0)
    images = images or [rng.integers(0, 256, (4, 4), dtype=np.uint8) for _ in labels]
    features = datasets.Features({"image": image or datasets.Image(), "label": feature})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features).save_to_disk(str(folder))


@pytest.mark.parametrize(
    ("labels", "feature"),
    [
        (["a", "b"] * 20, datasets.Value("string")),
        ([0.9, 1.9] * 20, datasets.Value("float32")),
        ([None, 1] * 20, datasets.Value("int64")),
        ([[0], [1]] * 20, datasets.Sequence(datasets.Value("int64"))),
    ],
    ids=["string", "float", "missing", "list"],
)
def test_labels_that_are_no_classes_are_left_out(tmp_path, config, labels, feature):
    store(tmp_path, labels, feature)
    data = dataclasses.replace(config.data, dataset=f"path:{tmp_path}", partition="iid", num_clients=2)
    check_data(data, 0)
    assert load_client_data(data, 0, 0).train.labels is None
    with pytest.raises(ConfigError, match='use "iid"'):
        check_data(dataclasses.replace(data, partition="dirichlet"), 0)


def test_whole_numbers_are_labels_and_a_lone_class_does_not_stop_the_split(tmp_path, config):
    store(tmp_path, [0] * 30 + [1], datasets.ClassLabel(num_classes=2))
    data = dataclasses.replace(config.data, dataset=f"path:{tmp_path}", partition="iid", num_clients=1, num_classes=2)
    check_data(data, 0)
    assert load_client_data(data, 0, 0).train.labels is not None


def test_an_unlabelled_mark_is_refused_before_training(tmp_path, config):
    train = blank_images(30).add_column("label", [0] * 30)
    test = train.select(range(2)).map(lambda row: {"label": -1})
    datasets.DatasetDict(train=train, test=test).save_to_disk(str(tmp_path))
    data = dataclasses.replace(config.data, dataset=f"path:{tmp_path}", partition="iid", num_clients=2)
    with pytest.raises(ConfigError, match="the label -1"):
        check_data(data, 0)


def test_a_test_split_without_the_train_splits_columns_is_refused(tmp_path, config):
    train = blank_images(30).add_column("label", [0] * 30)
    datasets.DatasetDict(train=train, test=train.remove_columns("label")).save_to_disk(str(tmp_path))
    with pytest.raises(ConfigError, match='its test split lacks the column "label"'):
        load_source(f"path:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "content"), [("train-0.parquet", b"junk"), ("state.json", b"{"), ("a.png", b"junk"), ("notes.txt", b"")]
)
def test_junk_is_one_sentence(tmp_path, config, name, content):
    (tmp_path / name).write_bytes(content)
    data = dataclasses.replace(config.data, dataset=f"path:{tmp_path}", partition="iid", num_clients=1)
    with pytest.raises(ConfigError, match="can") as raised:
        check_data(data, 0)
    assert str(tmp_path) in str(raised.value)


def test_a_column_of_numbers_is_not_taken_for_images(tmp_path, config):
    store(tmp_path, [0] * 30, datasets.Value("int64"), image=datasets.Value("float32"), images=[0.5] * 30)
    with pytest.raises(ConfigError, match="not images"):
        load_source(f"path:{tmp_path}")


def test_a_folder_with_brackets_in_its_name_loads(tmp_path, config):
    folder = tmp_path / "data [1]"
    folder.mkdir()
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": [np.zeros((4, 4), np.uint8)] * 30}, features).to_parquet(
        folder / "train.parquet"
    )
    assert len(load_source(f"path:{folder}")["train"]) == 24


def test_sixteen_bit_images_are_scaled_not_clipped(config):
    values = np.array([[0, 257], [25700, 65535]], dtype=np.uint16).repeat(4, 0).repeat(4, 1)
    image = Image.fromarray(values)
    data = dataclasses.replace(config.data, image_size=8)
    table = datasets.Dataset.from_dict({"image": [image]}, datasets.Features({"image": datasets.Image()}))
    assert to_tensors(table, data).images[0, 0, ::7, ::7].tolist() == [[0, 1], [100, 255]]


@pytest.mark.parametrize("fraction", [0.999, 0.5])
def test_a_client_always_keeps_an_image_to_train_on(config, fraction):
    data = dataclasses.replace(config.data, held_out_fraction=fraction)
    assert all(len(client.train) >= 1 for client in all_clients(data))
