"""What a client holds: partitions, held-out share, labels."""

from typing import get_args

import numpy as np
import pytest
import torch

from fedddpm_app.config import ConfigError
from fedddpm_app.config.data import PartitionName
from fedddpm_app.data.dataset import FederatedDataset, open_dataset
from fedddpm_app.data.partitioning import partition_rows
from fedddpm_app.diffusion.images import to_unit_range
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.seeding import derive_seed
from tests.conftest import ROOT
from tests.data.conftest import client_images, encoded, noise, table_of

LABELLED = ["dirichlet", "pathological", "shards", "disjoint-classes"]
PARTITIONS = [*LABELLED, "iid", "quantity-skew"]


def all_clients(data, seed=0):
    return [client_images(data, seed, i) for i in range(data.num_clients)]


def test_digits_are_split_without_loss_and_pixels_are_exact(config):
    from sklearn.datasets import load_digits

    clients, test = all_clients(config.data), open_dataset(config.data, 0).test
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


@pytest.mark.parametrize("partition", PARTITIONS)
def test_partitions_are_disjoint_and_follow_the_seed(data_config, partition):
    data = data_config(partition=partition, dirichlet_alpha=1.0)
    first, again, other = (
        open_dataset(data, 0).clients,
        FederatedDataset(data, 0).clients,
        open_dataset(data, 1).clients,
    )
    rows = torch.cat([part for client in first for part in (client.train, client.held_out)])
    assert len(rows.unique()) == len(rows) <= 1437
    if partition not in ("pathological", "shards"):  # which leave out classes that nobody drew, or a remainder
        assert len(rows) == 1437
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.train, b.train)
        assert len(a.held_out) == round(0.1 * (len(a.train) + len(a.held_out)))
    assert any(not torch.equal(a.train, c.train) for a, c in zip(first, other, strict=True))


def test_iid_clients_hold_every_class(data_config):
    data = data_config(partition="iid")
    assert all(set(client.train.labels.tolist()) == set(range(10)) for client in all_clients(data))


def test_pathological_clients_hold_so_many_classes(data_config):
    table = open_dataset(data_config(partition="pathological", classes_per_client=2), 0).label_table
    assert ((table > 0).sum(1) == 2).all()


def test_shards_are_cut_from_the_sorted_classes(data_config):
    """Of 8 equal shards of 10 classes one spans at most 3; a client has 2 of them."""
    data = data_config(partition="shards", shards_per_client=2, held_out_fraction=0.0)
    table = open_dataset(data, 0).label_table
    assert ((table > 0).sum(1) <= 5).all()
    assert table.sum(1).max() - table.sum(1).min() <= 2 * 1437 // 8
    assert int(table.sum()) == 1437 // 8 * 8


def test_a_smaller_dirichlet_alpha_is_more_skewed(data_config):
    def skew(alpha):
        table = open_dataset(
            data_config(partition="dirichlet", dirichlet_alpha=alpha, min_partition_size=1), 0
        ).label_table.double()
        shares = table / table.sum(1, keepdim=True)
        return float((shares - table.sum(0) / table.sum()).abs().sum())

    assert skew(0.1) > 2 * skew(10.0)


def test_dirichlet_shares_are_sampled_class_by_class(data_config):
    """The clients' images of class c are cut at c's own sample from Dirichlet(alpha), rounded down."""
    data = data_config(partition="dirichlet", dirichlet_alpha=0.5, min_partition_size=1, held_out_fraction=0.0)
    table = open_dataset(data, 0).label_table
    generator = np.random.default_rng(derive_seed(0, "partition") % 2**32)
    for of_class in table.T.tolist():
        cuts = (generator.dirichlet([0.5] * 4).cumsum() * sum(of_class)).astype(int)[:-1]
        assert np.diff(cuts, prepend=0, append=sum(of_class)).tolist() == of_class


def test_quantity_skew_changes_sizes_and_not_classes(data_config):
    data = data_config(partition="quantity-skew", dirichlet_alpha=0.3, min_partition_size=50, held_out_fraction=0.0)
    table = open_dataset(data, 0).label_table
    sizes = table.sum(1)
    assert int(sizes.sum()) == 1437
    assert int(sizes.min()) >= 50
    assert int(sizes.max()) > 3 * int(sizes.min())
    assert (table[sizes.argmax()] > 0).all()


@pytest.mark.parametrize("clients", [3, 6])
def test_natural_gives_every_owner_whole_to_one_client(tmp_path, data_config, clients):
    owners = [f"writer-{k % 6}" for k in range(120)]
    table_of(noise(120)).add_column("writer", owners).to_parquet(tmp_path / "train.parquet")
    table_of(noise(9, seed=1)).add_column("writer", ["x"] * 9).to_parquet(tmp_path / "test.parquet")
    data = data_config(tmp_path, partition="natural", partition_column="writer", num_clients=clients)
    held = [
        {owners[row] for part in (c.train, c.held_out) for row in part.tolist()} for c in open_dataset(data, 0).clients
    ]
    assert [len(names) for names in held] == [6 // clients] * clients
    assert set.union(*held) == set(owners)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_clients": 11}, "use fewer clients"),
        ({"num_clients": 1000, "partition": "iid"}, "the training split holds 1437: use fewer clients"),
        ({"min_partition_size": 350}, "min-partition-size = 350"),
        ({"num_classes": 5}, "use num-classes = 10"),
        ({"dataset": "path:/nowhere/at/all"}, "there is no such folder"),
        ({"partition": "dirichlet", "dirichlet_alpha": 0.001, "min_partition_size": 355}, "larger dirichlet-alpha"),
        ({"partition": "natural", "partition_column": "writer"}, 'partition-column = "writer" is not a column'),
        ({"partition": "natural", "partition_column": "label", "num_clients": 11}, 'as many values of "label"'),
        ({"partition": "shards", "shards_per_client": 1000}, "cannot be made"),
        ({"partition": "pathological", "classes_per_client": 11}, "use a classes-per-client"),
        ({"max_examples_per_client": 100}, "max-examples-per-client = 100"),
    ],
)
def test_data_that_cannot_be_used_say_what_to_change(data_config, changes, says):
    with pytest.raises(ConfigError, match=says):
        all_clients(data_config(**changes))


@pytest.mark.parametrize("name", get_args(PartitionName))
def test_every_partition_is_documented_and_tested(name):
    assert f"| `{name}` |" in (ROOT / "docs" / "data.md").read_text(), f"docs/data.md: a row for {name}"
    assert f"| {name}" in (ROOT / "pyproject.toml").read_text().replace("# iid", "| iid"), "the comment of partition"
    assert f"``{name}``" in partition_rows.__doc__, f"the docstring of partition_rows: {name}"
    assert name in [*PARTITIONS, "natural", "sites"], f"add {name} to LABELLED or PARTITIONS here"


@pytest.mark.parametrize("partition", LABELLED)
def test_labels_are_needed_where_they_are(tmp_path, data_config, partition):
    table_of(noise(100)).save_to_disk(str(tmp_path))
    with pytest.raises(ConfigError, match="class-conditional = true needs labels"):
        open_dataset(data_config(tmp_path, class_conditional=True), 0).check()
    with pytest.raises(ConfigError, match='use partition="iid"'):
        open_dataset(data_config(tmp_path, partition=partition), 0).check()
    assert open_dataset(data_config(tmp_path, partition="quantity-skew"), 0).check()


@pytest.mark.parametrize("fraction", [0.999, 0.5])
def test_a_client_always_keeps_an_image_to_train_on(data_config, fraction):
    assert all(len(client.train) >= 1 for client in all_clients(data_config(held_out_fraction=fraction)))


@pytest.mark.parametrize("partition", ["pathological", "shards"])
def test_which_classes_a_client_has_follows_the_seed(data_config, partition):
    data = data_config(partition=partition, classes_per_client=3, shards_per_client=1)
    classes = [
        [set(torch.nonzero(own).flatten().tolist()) for own in open_dataset(data, seed).label_table]
        for seed in range(6)
    ]
    assert any(each != classes[0] for each in classes)


def test_owners_stay_with_their_images_when_some_cannot_be_read(tmp_path, data_config):
    owners = [f"writer-{k % 2}" for k in range(40)]
    table = table_of(noise(40))
    broken = [{"bytes": b"junk" if k == 0 else row["bytes"], "path": None} for k, row in enumerate(encoded(table))]
    table_of(broken).add_column("writer", owners).to_parquet(tmp_path / "train.parquet")
    table_of(noise(5)).add_column("writer", ["c"] * 5).to_parquet(tmp_path / "test.parquet")
    data = data_config(tmp_path, partition="natural", partition_column="writer", max_bad_images=1)
    for client in open_dataset(data, 0).clients:
        rows = torch.cat([client.train, client.held_out]) + 1  # the first image is left out
        assert len({owners[row] for row in rows.tolist()}) == 1


@pytest.mark.parametrize("owner", [None, ""])
def test_images_of_nobody_are_refused_in_a_natural_partition(tmp_path, data_config, owner):
    table_of(noise(40)).add_column("writer", [owner, *"ab" * 19, "a"]).to_parquet(tmp_path / "train.parquet")
    table_of(noise(5)).add_column("writer", ["c"] * 5).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(ConfigError, match="is empty for 1 images"):
        open_dataset(data_config(tmp_path, partition="natural", partition_column="writer"), 0).check()


def test_images_that_no_client_has_are_counted(data_config):
    assert open_dataset(data_config(), 0).num_unassigned == 0
    data = data_config(partition="pathological", classes_per_client=1)
    assert (
        open_dataset(data, 0).num_unassigned
        == 1437 - sum(len(c.train) + len(c.held_out) for c in open_dataset(data, 0).clients)
        > 500
    )


def test_a_client_evaluates_on_what_it_does_not_train_on(config):
    task, seen = DiffusionTask(config), []
    task.loss_fn.losses = lambda model, batch, t, noise: seen.append(batch.images) or torch.zeros(len(batch.images))
    _, count = task.held_out_loss(task.create_model(), 2)
    expected = client_images(config.data, config.run.seed, 2).held_out
    assert count == len(expected)
    assert torch.equal(torch.cat(seen)[:count], to_unit_range(expected.images))


def test_the_label_table_counts_what_clients_train_on(config):
    table = open_dataset(config.data, 0).label_table
    for client, counts in zip(all_clients(config.data), table, strict=True):
        assert torch.equal(client.train.labels.bincount(minlength=10), counts)
