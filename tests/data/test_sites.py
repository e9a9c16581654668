"""Clients with folders of their own: the same images, in the same order, beside each other and each on its host."""

import dataclasses

import numpy as np
import pytest
import torch

from fedddpm_app.config import ConfigError
from fedddpm_app.data import sites as sites_module
from fedddpm_app.data.dataset import open_dataset
from fedddpm_app.data.export import export_sites
from fedddpm_app.data.sites import find_sites, of_site
from fedddpm_app.data.store import load_stored
from fedddpm_app.experiment.task import DiffusionTask
from tests.data.conftest import client_images, picture

DIGITS = ",".join(str(k) for k in range(10))


@pytest.fixture
def sites(tmp_path, data_config):
    """The demo's data on the disk, a folder per client, and the config that reads it."""
    folder = tmp_path / "sites"
    export_sites(open_dataset(data_config(), 0), folder)
    return data_config(folder, partition="sites", num_clients=4, class_names=DIGITS)


@pytest.fixture
def two_sites(tmp_path, data_config):
    """Two sites that share one of three classes, whose folders sort otherwise than ``class-names``; no test split."""
    rng = np.random.default_rng(0)
    for site, classes in (("a", ("dog", "cat")), ("b", ("dog", "ant"))):
        for name in classes:
            (tmp_path / "two" / site / name).mkdir(parents=True)
            for k in range(12):
                picture(rng, bands=1).save(tmp_path / "two" / site / name / f"{k}.png")
    return data_config(tmp_path / "two", partition="sites", num_clients=2, class_names="dog,cat,ant", num_classes=3)


def test_a_run_can_see_that_its_data_have_changed(tmp_path, data_config):
    rng = np.random.default_rng(0)
    for name in ("a/0", "a/1", "a/2", "b/1", "b/2", "test/0"):
        path = tmp_path / "sites" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(rng, bands=1).save(path)

    def changed(before=None):
        for cached in (load_stored, open_dataset, sites_module._load_sites):  # as a new process
            cached.cache_clear()
        now = open_dataset(data_config(tmp_path / "sites", partition="sites", min_partition_size=1), 0).digests
        return now, [name for name in now if before and now[name] != before[name]]

    began, _ = changed()
    (tmp_path / "sites" / "a" / "2.png").rename(tmp_path / "sites" / "b" / "0.png")  # all images have the same order
    moved, names = changed(began)
    assert names == ["partition"]
    picture(rng, bands=1).save(tmp_path / "sites" / "test" / "0.png")
    _, names = changed(moved)
    assert names == ["test"]
    (tmp_path / "sites" / "b" / "1.png").unlink()
    _, names = changed(moved)
    assert names == ["train", "test", "partition"]


def path_of(config, partition_id):
    return str(find_sites(config)[0][partition_id])


def test_an_exported_partition_holds_the_clients_images(sites, data_config):
    assert torch.equal(open_dataset(sites, 0).label_table > 0, open_dataset(data_config(), 0).label_table > 0)
    for k in range(4):
        mine, before = client_images(sites, 0, k), client_images(data_config(), 0, k)
        pixels = [sorted(torch.cat([c.train.images, c.held_out.images]).flatten(1).tolist()) for c in (mine, before)]
        assert pixels[0] == pixels[1]
    assert sorted(open_dataset(sites, 0).test.images.flatten(1).tolist()) == sorted(
        open_dataset(data_config(), 0).test.images.flatten(1).tolist()
    )


def test_a_site_alone_has_the_images_labels_and_order_that_it_has_among_others(sites):
    for k in range(4):
        alone = of_site(sites, path_of(sites, k))
        rows, data = open_dataset(alone, 0).client(k), open_dataset(alone, 0).train
        among = client_images(sites, 0, k)
        for mine, expected in ((rows.train, among.train), (rows.held_out, among.held_out)):
            assert torch.equal(data.select(mine).images, expected.images)
            assert torch.equal(data.select(mine).labels, expected.labels)
    assert not torch.equal(rows.train, open_dataset(alone, 1).client(3).train)  # the order follows the seed


def test_the_task_of_a_node_with_a_data_path_reads_that_folder_alone(sites, config):
    given = dataclasses.replace(config, data=sites)
    among = DiffusionTask(given).train_data(1)
    absent = dataclasses.replace(given, data=dataclasses.replace(sites, dataset="path:/there/is/nothing"))
    alone = DiffusionTask(absent, path_of(sites, 1)).train_data(1)
    index = torch.arange(len(among))
    assert torch.equal(alone.batch(index).images, among.batch(index).images)
    assert alone.batch(index).labels is None  # of an unconditional model


def test_a_class_has_the_same_label_at_every_site(two_sites):
    assert open_dataset(two_sites, 0).label_table.gt(0).tolist() == [[True, True, False], [True, False, True]]
    alone = of_site(two_sites, path_of(two_sites, 1))
    assert open_dataset(alone, 0).train.labels.unique().tolist() == [0, 2]


def test_a_small_site_may_have_as_many_classes_as_images(tmp_path, data_config, caplog):
    """A table of its own with so many different texts holds captions; a site's are in ``class-names``."""
    rng = np.random.default_rng(0)
    rows = {"a": ("dog", "cat"), "b": ("dog", "dog", "cat", "cat", "ant", "ant")}
    for site, texts in rows.items():
        (tmp_path / "tables" / site).mkdir(parents=True)
        for k in range(len(texts)):
            picture(rng, bands=1).save(tmp_path / "tables" / site / f"{k}.png")
        lines = "".join(f"{k}.png,{text}\n" for k, text in enumerate(texts))
        (tmp_path / "tables" / site / "metadata.csv").write_text("file_name,label\n" + lines)
    data = {"partition": "sites", "min_partition_size": 1, "num_classes": 3, "class_names": "dog,cat,ant"}
    config = data_config(tmp_path / "tables", **data)
    assert open_dataset(config, 0).label_table.sum(1).tolist() == [1, 5]  # beside the held-out ones
    table = tmp_path / "tables" / "a" / "metadata.csv"
    table.write_text("file_name,label\n0.png,dog\n1.png,catt\n")
    with pytest.raises(ConfigError, match='/a also has the class "catt": add it'):
        open_dataset(dataclasses.replace(config, max_bad_images=2), 0).check()
    table.unlink()
    given = dataclasses.replace(config, max_bad_images=1)  # which is another config for the caches
    assert open_dataset(given, 0).train.labels is None
    assert 'class-names = "dog,cat,ant", but these sites have no labels: a; those of the others' in caplog.text
    with pytest.raises(
        ConfigError,
        match=r"class-conditional = true needs labels, which the train split lacks \(sites without labels: a\)",
    ):
        open_dataset(dataclasses.replace(given, class_conditional=True), 0).check()


def test_without_class_names_sites_have_no_labels(two_sites):
    config = dataclasses.replace(two_sites, class_names="")
    assert open_dataset(config, 0).train.labels is None
    assert open_dataset(config, 0).check() == [22, 22]
    assert open_dataset(config, 0).test is None


def test_a_server_may_have_the_test_split_alone_or_nothing(sites, tmp_path):
    (tmp_path / "server").mkdir()
    (tmp_path / "sites" / "test").rename(tmp_path / "server" / "test")
    server = dataclasses.replace(sites, dataset=f"path:{tmp_path / 'server'}")
    assert len(open_dataset(server, 0).test) == 360
    with pytest.raises(ConfigError, match=r"no train split on this host.*data-path"):
        open_dataset(server, 0).client(0)
    assert open_dataset(dataclasses.replace(sites, dataset=f"path:{tmp_path / 'nothing'}"), 0).test is None


def test_a_sites_own_test_split_is_left_alone(two_sites, tmp_path):
    rng = np.random.default_rng(1)
    for split, count in (("train", 15), ("test", 5)):
        (tmp_path / "own" / split).mkdir(parents=True)
        for k in range(count):
            picture(rng, bands=1).save(tmp_path / "own" / split / f"{k}.png")
    assert len(open_dataset(of_site(two_sites, str(tmp_path / "own")), 0).train) == 15


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_clients": 3}, r"num-clients = 3, but .* holds the folders of 2 sites \(a, b\): set num-clients = 2"),
        ({"class_names": "dog,cat"}, r'/b also has the class "ant": add it'),
        ({"min_partition_size": 25}, r"client 0 would hold 24 images, fewer than min-partition-size = 25"),
    ],
)
def test_sites_that_do_not_fit_the_config_are_refused(two_sites, changes, says):
    with pytest.raises(ConfigError, match=says):
        open_dataset(dataclasses.replace(two_sites, **changes), 0).check()


def test_a_data_path_is_for_runs_with_sites(two_sites, data_config, tmp_path):
    with pytest.raises(ConfigError, match=r'data-path = "/data".* set partition = "sites"'):
        of_site(data_config(), "/data")
    with pytest.raises(ConfigError, match=r'data-path = ".*/gone": there is no such folder on this host'):
        of_site(two_sites, str(tmp_path / "gone"))


def test_an_export_wants_a_new_folder(data_config, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        export_sites(open_dataset(data_config(), 0), tmp_path / "full")
