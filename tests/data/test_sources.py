"""What counts as a data set: folders of every kind, the hub, and what is wrong with them."""

import gzip
import struct

import datasets
import numpy as np
import pytest
import torch

from fedddpm_app.config import ConfigError
from fedddpm_app.data.dataset import open_dataset
from fedddpm_app.data.sources import HUB_IDS, load_source
from fedddpm_app.data.splits import split_named
from fedddpm_app.data.store import load_stored
from tests.data.conftest import client_images, noise, picture, table_of


def write_idx(path, array):
    content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3)])
def test_idx_files_load_exactly(tmp_path, stored, suffix, shape):
    train, test, kind = noise(40, shape), noise(9, shape, seed=1), f"idx{len(shape) + 1}-ubyte{suffix}"
    for stem, images in (("train", train), ("t10k", test)):
        write_idx(tmp_path / f"{stem}-images-{kind}", images)
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte{suffix}", (np.arange(len(images)) % 4).astype(np.uint8))
    splits = stored(tmp_path, image_channels=len(shape) * 2 - 3)
    for split, images in (("train", train), ("test", test)):
        expected = torch.from_numpy(images.reshape(len(images), 8, 8, -1)).permute(0, 3, 1, 2)
        assert torch.equal(splits[split].data.images, expected)
        assert splits[split].data.labels.tolist() == [k % 4 for k in range(len(images))]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\0\0\x08\x03" + struct.pack(">3I", 10**9, 1000, 1000) + b"x", "does not hold the 1000000000 x 1000 x 1000"),
        (b"\0\0\x0d\x03" + struct.pack(">3I", 1, 2, 2) + bytes(16), "not an IDX file of unsigned bytes"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 1, 2, 2) + bytes(5), "does not hold"),
        (b"", "not an IDX file"),
        (b"\0\0\x08\x03\0\0", "train-images-idx3-ubyte is damaged"),
    ],
)
def test_a_broken_idx_file_is_named(tmp_path, content, says):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        load_source(f"path:{tmp_path}")


def test_idx_labels_of_another_name_are_not_ignored_in_silence(tmp_path, caplog):
    write_idx(tmp_path / "train-images-idx3-ubyte", noise(10))
    write_idx(tmp_path / "train-label-idx1-ubyte", np.zeros(10, np.uint8))
    assert load_source(f"path:{tmp_path}")["train"].labels is None
    says = "no labels for the train split: they are read from train-labels-idx1-ubyte, and not from train-label-idx1"
    assert says in caplog.text


def test_labels_that_do_not_fit_the_idx_images_are_refused(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", noise(10))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(9, np.uint8))
    with pytest.raises(ConfigError, match="9 labels for 10 images"):
        load_source(f"path:{tmp_path}")


def test_two_data_sets_of_idx_files_in_one_folder_are_refused(tmp_path):
    for name in ("letters-train-images-idx3-ubyte", "mnist-train-images-idx3-ubyte"):
        write_idx(tmp_path / name, noise(10))
    with pytest.raises(ConfigError, match="two IDX files of train images"):
        load_source(f"path:{tmp_path}")


@pytest.mark.parametrize("names", [("train", "test"), ("training", "testing"), ("Train", "Test")])
def test_folders_and_files_say_the_split_by_usual_names(tmp_path, names):
    for name, count in zip(names, (30, 10), strict=True):
        (tmp_path / name).mkdir()
        table_of(noise(count)).to_parquet(tmp_path / name / "part-0.parquet")
    assert [len(part) for part in load_source(f"path:{tmp_path}").values()] == [30, 10]


def test_a_name_that_only_begins_like_a_split_is_none(tmp_path):
    for name in ("trainidation", "values", "testimony"):
        table_of(noise(10)).to_parquet(tmp_path / f"{name}.parquet")
    assert [len(part) for part in load_source(f"path:{tmp_path}").values()] == [24, 6]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("mnist_train.parquet", "train"),
        ("train2017", "train"),
        ("Training", "train"),
        ("imgs.test-0", "test"),
        ("t10k-images", "test"),
        ("valid", "validation"),
        ("dev", "validation"),
        ("evaluation-set", "validation"),
        ("trainA", "train"),
        ("DataTest", "test"),
        ("trainingSet", "train"),
        ("testset", "test"),
        ("testimony", None),
        ("CONTEST", None),
        ("values", None),
        ("latest", None),
        ("strain", None),
    ],
)
def test_the_word_for_a_split_is_found(name, split):
    assert split_named(name) == split


def test_tables_of_two_data_sets_are_not_joined(tmp_path):
    for name in ("plain", "augmented"):
        (tmp_path / name).mkdir()
        table_of(noise(20)).to_parquet(tmp_path / name / "train.parquet")
    with pytest.raises(ConfigError, match="in several folders, augmented and plain"):
        load_source(f"path:{tmp_path}")


@pytest.mark.parametrize("splits", [("train", "validation"), ("train", "valid"), ("training", "dev")])
def test_a_hub_sets_validation_split_stands_in_for_a_test_split(monkeypatch, splits):
    parts = dict(zip(splits, (table_of(noise(20)), table_of(noise(5))), strict=True))
    monkeypatch.setattr(datasets, "load_dataset", lambda _: datasets.DatasetDict(parts))
    load_source.cache_clear()
    found = load_source("some/set")
    load_source.cache_clear()
    assert [len(found[split]) for split in ("train", "test")] == [20, 5]


def test_a_hub_set_that_changes_is_decoded_again(monkeypatch, stored):
    def decoded(seed):
        parts = datasets.DatasetDict(train=table_of(noise(20, seed=seed)), test=table_of(noise(5)))
        monkeypatch.setattr(datasets, "load_dataset", lambda _: parts)
        load_source.cache_clear()
        load_stored.cache_clear()
        return stored(dataset="some/changing-set", image_size=4)["train"].data.images

    assert torch.equal(decoded(0)[:, 0], torch.from_numpy(noise(20)))
    assert torch.equal(decoded(1)[:, 0], torch.from_numpy(noise(20, seed=1)))
    load_source.cache_clear()


def test_classes_that_are_numbered_otherwise_in_the_test_split_are_brought_together(tmp_path, stored):
    train = table_of(noise(20), [0, 1] * 10, datasets.ClassLabel(names=["cat", "dog"]))
    test = table_of(noise(4), [0, 0, 1, 1], datasets.ClassLabel(names=["dog", "cat"]))
    datasets.DatasetDict(train=train, test=test).save_to_disk(str(tmp_path / "a"))
    assert stored(tmp_path / "a")["test"].data.labels.tolist() == [1, 1, 0, 0]
    other = table_of(noise(4), [0, 0, 1, 1], datasets.ClassLabel(names=["dog", "cow"]))
    datasets.DatasetDict(train=train, test=other).save_to_disk(str(tmp_path / "b"))
    with pytest.raises(ConfigError, match="its test split has other classes"):
        load_source(f"path:{tmp_path / 'b'}")


def save_pictures(folder, names):
    for k, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(np.random.default_rng(k)).save(folder / name)


def test_pictures_in_folders_of_splits(tmp_path):
    names = [f"{s}/{c}/{k}.png" for s, n in (("Training", 6), ("Testing", 2)) for c in ("a", "b") for k in range(n)]
    save_pictures(tmp_path, names)
    found = load_source(f"path:{tmp_path}")
    assert [len(found[split]) for split in ("train", "test")] == [12, 4]
    assert found["test"].labels.tolist() == [0, 0, 1, 1]
    assert found["train"].class_names == ["a", "b"]


def test_a_class_that_one_split_lacks_keeps_its_number(tmp_path):
    names = [f"train/{c}/{k}.png" for c in "abc" for k in range(3)] + [f"test/{c}/0.png" for c in "bc"]
    save_pictures(tmp_path, names)
    assert load_source(f"path:{tmp_path}")["test"].labels.tolist() == [1, 2]


def test_folders_that_count_from_zero_are_in_the_order_of_numbers(tmp_path):
    save_pictures(tmp_path, [f"{c}/{k}.png" for c in range(12) for k in range(3)])
    names = load_source(f"path:{tmp_path}")["train"].class_names
    assert names == [str(k) for k in range(12)]


def test_a_class_called_like_a_split_is_a_class(tmp_path):
    save_pictures(tmp_path, [f"{c}/{k}.png" for c in ("bus", "car", "plane", "train") for k in range(10)])
    found = load_source(f"path:{tmp_path}")
    assert found["train"].class_names == ["bus", "car", "plane", "train"]
    assert sum(len(part) for part in found.values()) == 40


def test_names_of_pictures_say_nothing_of_splits(tmp_path):
    save_pictures(tmp_path, [f"{name}_{k}.png" for name in ("test", "train", "x") for k in range(10)])
    assert sum(len(part) for part in load_source(f"path:{tmp_path}").values()) == 30


def test_links_are_followed_and_hidden_files_left_alone(tmp_path):
    save_pictures(tmp_path / "elsewhere", [f"{k}.png" for k in range(10)])
    save_pictures(tmp_path / "data", [f"cat/{k}.png" for k in range(10)])
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "dog-loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "cat" / "._1.png").write_bytes(b"junk")
    (tmp_path / "data" / "cat" / ".DS_Store").write_bytes(b"junk")
    (tmp_path / "data" / "cat" / "notes.txt").write_text("")
    found = load_source(f"path:{tmp_path / 'data'}")
    assert found["train"].class_names == ["cat", "dog"]
    assert sum(len(part) for part in found.values()) == 20


def test_pictures_that_cannot_be_opened_count_as_bad(tmp_path, stored):
    save_pictures(tmp_path, [f"{k}.png" for k in range(10)])
    (tmp_path / "photo.HEIC").write_bytes(b"ftypheic")
    with pytest.raises(ConfigError, match=r"photo\.HEIC"):
        stored(tmp_path, image_channels=3)


def test_pictures_beside_class_folders_are_refused(tmp_path):
    save_pictures(tmp_path, ["a/1.png", "a/2.png", "3.png"])
    with pytest.raises(ConfigError, match=r"1 pictures, such as 3\.png, lie beside the class folders"):
        load_source(f"path:{tmp_path}")


def test_few_images_of_many_classes_are_split(tmp_path):
    save_pictures(tmp_path, [f"{c:02d}/{k}.png" for c in range(50) for k in range(3)])
    assert [len(part) for part in load_source(f"path:{tmp_path}").values()] == [120, 30]


def test_unpacked_idx_files_beside_the_packed_ones(tmp_path):
    for suffix in ("", ".gz"):
        write_idx(tmp_path / f"train-images-idx3-ubyte{suffix}", noise(20))
    assert sum(len(part) for part in load_source(f"path:{tmp_path}").values()) == 20


@pytest.mark.parametrize("name", ["/data/x", "./data", "~/data"])
def test_a_bare_path_is_told_to_be_one(name):
    with pytest.raises(ConfigError, match='looks like a folder: write "path:/'):
        load_source(name)


def test_a_relative_path_is_refused_with_the_absolute_one():
    with pytest.raises(ConfigError, match=r'is relative, .*: use "path:/.*/some/folder"'):
        load_source("path:some/folder")


@pytest.mark.parametrize("kind", ["parquet", "arrow", "save_to_disk", "parquet-in-folders"])
def test_tables_with_other_column_names_load_exactly(tmp_path, stored, kind):
    pixels = noise(40, (8, 8))
    table = table_of(pixels, [k % 4 for k in range(40)], datasets.ClassLabel(num_classes=4), "img", "fine_label")
    table = table.add_column("coarse_label", [0] * 40)
    parts = {"train": table, "test": table.select(range(8))}
    if kind == "save_to_disk":
        datasets.DatasetDict(parts).save_to_disk(str(tmp_path))
    for split, part in parts.items():
        if kind == "parquet":
            part.to_parquet(tmp_path / f"{split}-0.parquet")
        elif kind == "parquet-in-folders":
            (tmp_path / split).mkdir()
            part.to_parquet(tmp_path / split / "0000.parquet")
        elif kind == "arrow":
            part.save_to_disk(str(tmp_path / "saved" / split))
            (tmp_path / "saved" / split / "data-00000-of-00001.arrow").rename(tmp_path / f"{split}-0.arrow")
    if kind == "arrow":
        (tmp_path / "saved" / "train" / "state.json").unlink()
    splits = stored(tmp_path)
    assert torch.equal(splits["train"].data.images[:, 0], torch.from_numpy(pixels))
    assert splits["train"].data.labels.tolist() == [k % 4 for k in range(40)]
    assert splits["train"].info.class_names == ["0", "1", "2", "3"]
    assert len(splits["test"].data) == 8


def test_the_validation_split_stands_in_for_a_test_split(tmp_path):
    table_of(noise(30)).to_parquet(tmp_path / "train.parquet")
    table_of(noise(7)).to_parquet(tmp_path / "validation.parquet")
    assert [len(load_source(f"path:{tmp_path}")[split]) for split in ("train", "test")] == [30, 7]


def test_a_folder_of_images_has_its_folders_as_classes(folder_of_images, data_config):
    data = data_config(folder_of_images, image_channels=3, num_classes=2)
    client = client_images(data, 0, 0)
    assert client.train.images.shape[1:] == (3, 8, 8)
    assert set(client.train.labels.tolist()) == {0, 1}
    splits = load_source(data.dataset)
    assert splits["train"].class_names == ["cat", "dog"]
    assert len(splits["test"]) == 12


def test_a_folder_of_images_without_classes_loads(tmp_path, stored):
    for k in range(20):
        picture(np.random.default_rng(k)).save(tmp_path / f"{k}.png")
    splits = stored(tmp_path, image_channels=3)
    assert splits["train"].data.labels is None
    assert [len(part.data) for part in splits.values()] == [16, 4]


def test_a_hub_data_set_without_network_says_how_to_give_a_folder(monkeypatch):
    def no_network(name):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", no_network)
    with pytest.raises(ConfigError, match=r'dataset = "some/hub-set".*"path:/absolute/folder"'):
        load_source("some/hub-set")


@pytest.mark.parametrize("name", [*HUB_IDS, "some/hub-id"])
def test_a_hub_data_set_loads_by_its_id(monkeypatch, name, stored):
    """A stand-in for the hub, with CIFAR-100's columns."""
    asked = []

    def hub(name):
        asked.append(name)
        table = table_of(noise(20), [k % 3 for k in range(20)], datasets.ClassLabel(num_classes=3), "img", "fine_label")
        return datasets.DatasetDict(train=table, test=table.select(range(5)))

    load_source.cache_clear()
    monkeypatch.setattr(datasets, "load_dataset", hub)
    splits = stored(dataset=name, image_size=4)
    load_source.cache_clear()
    assert asked == [HUB_IDS.get(name, name)]
    assert torch.equal(splits["train"].data.images[:, 0], torch.from_numpy(noise(20)))
    assert splits["train"].data.labels.tolist() == [k % 3 for k in range(20)]


@pytest.mark.parametrize("kind", ["string", "large_string"])
def test_texts_are_classes_in_alphabetical_order(tmp_path, stored, kind):
    table_of(noise(40), ["dog", "cat"] * 20, datasets.Value(kind)).to_parquet(tmp_path / "train.parquet")
    table_of(noise(4), ["bird"] * 4, datasets.Value(kind)).to_parquet(tmp_path / "test.parquet")
    splits = stored(tmp_path)
    assert splits["train"].info.class_names == ["bird", "cat", "dog"]
    assert splits["train"].data.labels.tolist() == [2, 1] * 20
    assert splits["test"].data.labels.tolist() == [0] * 4


def test_whole_numbers_are_labels_and_a_lone_class_does_not_stop_the_split(tmp_path, data_config):
    table_of(noise(31), [0] * 30 + [1], datasets.ClassLabel(num_classes=2)).save_to_disk(str(tmp_path))
    assert open_dataset(data_config(tmp_path, num_classes=2), 0).train.labels is not None


def test_an_unlabelled_mark_is_refused_before_training(tmp_path, data_config):
    test = table_of(noise(2), [-1, -1])
    datasets.DatasetDict(train=table_of(noise(30), [0] * 30), test=test).save_to_disk(str(tmp_path))
    with pytest.raises(ConfigError, match="the label -1"):
        open_dataset(data_config(tmp_path), 0).check()


def test_a_test_split_without_the_train_splits_columns_is_refused(tmp_path):
    train = table_of(noise(30), [0] * 30)
    datasets.DatasetDict(train=train, test=train.remove_columns("label")).save_to_disk(str(tmp_path))
    with pytest.raises(ConfigError, match='its test split lacks the column "label"'):
        load_source(f"path:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "content"), [("train-0.parquet", b"junk"), ("state.json", b"{"), ("a.png", b"junk"), ("notes.txt", b"")]
)
def test_junk_is_one_sentence(tmp_path, data_config, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match="can") as raised:
        open_dataset(data_config(tmp_path), 0).check()
    assert str(tmp_path) in str(raised.value)


def test_an_empty_split_is_refused(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", noise(30))
    write_idx(tmp_path / "t10k-images-idx3-ubyte", noise(0))
    with pytest.raises(ConfigError, match="no images in its test split"):
        load_source(f"path:{tmp_path}")


def test_a_column_of_numbers_is_not_taken_for_images(tmp_path):
    datasets.Dataset.from_dict({"image": [0.5] * 30}).save_to_disk(str(tmp_path))
    with pytest.raises(ConfigError, match="not images"):
        load_source(f"path:{tmp_path}")


def test_a_table_without_images_says_its_columns(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"] * 30}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ConfigError, match='no image column, only text: name it "image"'):
        load_source(f"path:{tmp_path}")


def test_a_folder_with_brackets_in_its_name_loads(tmp_path):
    folder = tmp_path / "data [1]"
    folder.mkdir()
    table_of(noise(30)).to_parquet(folder / "train.parquet")
    assert len(load_source(f"path:{folder}")["train"]) == 24
