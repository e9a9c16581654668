"""An audit of runs: a model that was overfitted on purpose is found out, and one that never saw the data is not."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fedddpm_app.audit.attacks import DISTANCE, RATIO, THRESHOLD, Attempt, Audit, Effort, Findings
from fedddpm_app.audit.final import metrics_of
from fedddpm_app.audit.pools import Pool, pool_of
from fedddpm_app.audit.targets import Kind, Target, Targets
from fedddpm_app.auxiliary.sampler import AuxiliarySampler
from fedddpm_app.auxiliary.share import batches_of
from fedddpm_app.cli import app
from fedddpm_app.config import default_run_config, load_config
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.evaluation.membership import Attack
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.recording.auxiliary_set import load_auxiliary_set
from fedddpm_app.recording.reading import read_run_config
from fedddpm_app.training.trainer import create_trainer
from fedddpm_app.weights import load_into, snapshot
from tests.conftest import RunDirectory
from tests.evaluation.test_membership import Knows

FULL = {"partition": "iid", "num-clients": 2}


@pytest.fixture(scope="module")
def small(cache_dir):
    """The app's own model, and 30 images of its data for each side."""
    config = load_config(default_run_config() | FULL | {"cache-dir": str(cache_dir)})
    task = DiffusionTask(config)
    train = task.data.train.without_labels()
    return config, task, Pool(train.select(torch.arange(30)), train.select(torch.arange(30, 60)))


def trained(config, task, images, steps):
    trainer = create_trainer(config, task)
    result = trainer.train(snapshot(task.create_model()), images, steps=steps, seed=0, learning_rate=0.005)
    model = task.create_model()
    load_into(model, result.weights)
    return model.eval()


@pytest.fixture(scope="module")
def overfitted(small):
    config, task, pool = small
    return trained(config, task, pool.members, 350)


def attacked(small, target, references=0):
    config, task, _ = small
    audit = Audit("unused", config, task, [0, 1], Effort(images=30, draws=2, references=references))
    return {attack.name: attack for attack in audit._attack(target)}


@pytest.mark.slow
def test_an_overfitted_model_is_found_out(small, overfitted):
    config, task, pool = small

    def another(images, _):
        return trained(config, task, images, 60)

    target = Target("overfitted", Kind.FINAL, pool, lambda: overfitted, another)
    found = attacked(small, target)[THRESHOLD]
    assert found.auc > 0.9
    assert found.auc_interval[0] > 0.8
    assert found.tpr > 0.2


@pytest.mark.slow
def test_a_model_that_never_saw_the_images_is_not(small, overfitted):
    """The same model, with other images as the alleged members."""
    task = small[1]
    others = task.data.train.without_labels().select(torch.arange(60, 120))
    halves = Pool(others.select(torch.arange(30)), others.select(torch.arange(30, 60)))
    found = attacked(small, Target("", Kind.FINAL, halves, lambda: overfitted, lambda *_: overfitted))[THRESHOLD]
    assert found.auc_interval[0] < 0.5 < found.auc_interval[1]


def test_reference_models_are_trained_on_halves_in_which_each_image_is_as_often_in_as_out(small):
    _, task, pool = small
    trained_on = []

    def train(images, number):
        trained_on.append(images)
        return task.create_model()

    found = attacked(small, Target("", Kind.FINAL, pool, task.create_model, train), references=4)
    assert set(found) == {THRESHOLD, RATIO}
    everything = pool.all().images.flatten(1)
    times = torch.zeros(60)
    for images in trained_on:
        assert len(images) == 30
        times += (everything[:, None] == images.images.flatten(1)[None]).all(2).any(1)
    assert times.tolist() == [2] * 60
    assert len({images.digest() for images in trained_on}) == 4


def test_pools_have_the_clients_images_and_others_with_the_same_classes(run_config):
    config = load_config(run_config | {"num-clients": 5, "partition": "disjoint-classes", "class-conditional": True})
    data = DiffusionTask(config).data
    for clients in ([1], [0, 3], range(5)):
        pool, rows = pool_of(data, clients, conditional=True), [data.client(k) for k in clients]
        assert torch.equal(pool.members.images, data.train.images[torch.cat([each.train for each in rows])])
        shares = [labels.bincount(minlength=10) / len(labels) for labels in (pool.members.labels, pool.others.labels)]
        assert (shares[0] - shares[1]).abs().max() < 0.05
        assert len(pool.others) > 1.5 * sum(len(each.held_out) for each in rows)
        assert not any((pool.members.images == image).flatten(1).all(1).any() for image in pool.others.images[:3])
    assert pool_of(data, [1], conditional=False).others.labels is None


def test_clients_that_differ_in_more_than_classes_are_compared_with_their_own_held_out_images(run_config):
    config = load_config(run_config | {"partition": "iid"})
    data = DiffusionTask(config).data
    with_test = len(pool_of(data, [0], conditional=False).others)
    data.config = replace(config.data, partition="natural", partition_column="writer")
    assert len(pool_of(data, [0], conditional=False).others) == len(data.client(0).held_out) < with_test


def test_a_pool_is_cut_evenly():
    images = ImageTensors(torch.arange(100, dtype=torch.uint8).reshape(100, 1, 1, 1), torch.arange(100))
    cut = Pool(images, images.select(torch.arange(3))).at_most(4)
    assert cut.members.labels.tolist() == [0, 33, 66, 99]
    assert len(cut.others) == 3
    assert not Pool(images, images.select(torch.arange(1))).is_large_enough


def audit(run, *options):
    result = CliRunner().invoke(app, ["audit", str(run.path), *options], env={"COLUMNS": "200"})
    return result.exit_code, " ".join(result.output.split())


QUICK = ("--images", "40", "--draws", "1", "--samples", "20", "--references", "2", "--device", "cpu")


def test_an_audit_of_a_run_attacks_all_that_left_the_clients(shared_run):
    run = shared_run()
    code, text = audit(run, *QUICK)
    assert code == 0, text
    found = json.loads((run.path / "audit.json").read_text())
    targets = [(row["target"], row["attack"]) for row in found["attacks"]]
    own = [f"own model of client {k}, uploaded" for k in range(4)]
    assert targets == [
        *((target, attack) for target in ("global model", *own) for attack in (THRESHOLD, RATIO)),
        ("auxiliary set", "distance to D_aux"),
    ]
    assert {row["members"] for row in found["attacks"]} == {40}
    assert [row["name"] for row in found["copies"]] == [
        "samples of the final model",
        *(f"auxiliary set, part of client {k}" for k in range(4)),
    ]
    assert "membership inference" in text
    assert "near copies of training images" in text
    with Image.open(run.path / "plots" / "audit.png") as picture:
        assert picture.width > 500


@pytest.mark.slow
def test_a_run_attacks_itself_at_its_end(run_app):
    """With the attack's default effort, as the command does; means over clients."""
    run = run_app(num_rounds=1, membership_attack="threshold", keep_auxiliary=False)
    metrics = {each["name"]: each for each in run.summary["metrics"] if each["name"].startswith("membership")}
    at_end = json.loads((run.path / "audit.json").read_text())["attacks"]
    assert audit(run, "--references", "0", "--samples", "0", "--device", "cpu")[0] == 0
    later = json.loads((run.path / "audit.json").read_text())["attacks"]
    assert at_end[:-1] == later  # D_aux is gone
    aucs = {name: [row["auc"] for row in at_end if row["target"].startswith(name)] for name in ("global", "own", "aux")}
    assert metrics["membership-final"]["value"] == aucs["global"][0]
    assert len(aucs["own"]) == 4
    assert metrics["membership-own-models"]["value"] == pytest.approx(np.mean(aucs["own"]))
    assert metrics["membership-auxiliary"]["value"] == aucs["aux"][0]
    assert metrics["membership-own-models"]["extractor"] == THRESHOLD
    assert {each["better"] for each in metrics.values()} == {"lower"}
    assert {each["floor"] for each in metrics.values()} == {0.5}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"pretrain_dp_epsilon": 5.0, "dp_secret_noise": False}, marks=pytest.mark.slow),
        pytest.param({"wire_dtype": "bf16"}, marks=pytest.mark.slow),
    ],
)
def test_the_models_that_are_attacked_are_those_of_the_run(shared_run, settings):
    """Generated again from the clients' own models, D_aux is the same, also with noise that derives from the seed."""
    run = shared_run(**settings)
    config = load_config(read_run_config(run.path))
    targets = Targets(run.path, config, DiffusionTask(config), range(4)).uploaded()
    stored = load_auxiliary_set(run.path / "auxiliary")
    owners = np.array(stored.clients)
    for client, target in enumerate(targets):
        model, mine = target.load(), stored.data.images[owners == client]
        _, batches = batches_of(config, client, len(mine), [])
        again = torch.cat([*AuxiliarySampler(config, model).sample(snapshot(model), batches)])
        assert torch.equal(again, mine)


@pytest.mark.slow
def test_models_that_were_withheld_are_not_attacked(run_app):
    run = run_app(min_images_to_share=370)
    (row,) = (row for row in run.stats if row["phase"] == "pretrain")
    assert 0 < len(row["pretrain/clients"]) < 4
    code, text = audit(run, *QUICK, "--samples", "0")  # reference models see fewer images than the limit
    assert code == 0, text
    targets = [each["target"] for each in json.loads((run.path / "audit.json").read_text())["attacks"]]
    assert [target for target in targets if "uploaded" in target] == [
        f"own model of client {k}, uploaded" for k in row["pretrain/clients"] for _ in (THRESHOLD, RATIO)
    ]


@pytest.mark.slow
@pytest.mark.long
def test_the_models_of_a_private_run_can_be_attacked_where_they_are_stored(shared_run):
    run = shared_run(algorithm="mixture", pretrain_dp_epsilon=5.0)
    code, text = audit(run, *QUICK, "--samples", "0", "--client", "1")
    assert code == 0, text
    found = json.loads((run.path / "audit.json").read_text())["attacks"]
    assert [(each["target"], each["attack"]) for each in found] == [
        ("model of client 1", THRESHOLD), ("model of client 1", RATIO)
    ]  # fmt: skip


def test_the_likelihood_ratio_finds_members_with_models_that_know_their_images(small):
    """Target and reference models know exactly the images that they were trained on."""
    _, task, pool = small

    def knowing(images, _=0):
        return Knows(images.batch(torch.arange(len(images))).images, task.scheduler)

    found = attacked(small, Target("", Kind.FINAL, pool, lambda: knowing(pool.members), knowing), references=4)
    assert found[RATIO].auc > 0.9
    wrong = attacked(small, Target("", Kind.FINAL, pool, lambda: knowing(pool.others), knowing), references=4)
    assert wrong[RATIO].auc < 0.1


def test_a_run_completes_if_its_attack_fails(run_app, monkeypatch):
    def fails(*_):
        raise ValueError("2 finite ones each")

    monkeypatch.setattr(Audit, "run", fails)
    run = run_app(algorithm="fedavg", num_rounds=1, local_steps=1, membership_attack="threshold")
    assert run.summary["status"] == "completed"


def test_images_that_the_models_have_not_seen_are_no_members(run_app):
    """One of four clients trains, and has pretrained models of two others beside it."""
    fedavg = run_app(algorithm="fedavg", num_rounds=1, clients_per_round=1, local_steps=1)
    (trained,) = fedavg.rounds()[0]["clients"]
    config = load_config(read_run_config(fedavg.path))
    task = DiffusionTask(config)
    targets = Targets(fedavg.path, config, task, range(4))
    assert targets.trained() == [trained]
    assert len(targets.final()[0].pool.members) == len(task.data.client(trained).train)
    assert Targets("unused", config, task, range(4)).trained() == [0, 1, 2, 3]


def test_a_client_that_took_no_part_has_nothing_to_audit(run_app):
    run = run_app(algorithm="fedavg", num_rounds=1, clients_per_round=1, local_steps=1)
    (trained,) = run.rounds()[0]["clients"]
    code, text = audit(run, *QUICK, "--client", str((trained + 1) % 4))
    assert code == 2
    assert f"client {(trained + 1) % 4} took no part in" in " ".join(text.split())
    (run.path / "stats.jsonl").write_text("{\n")
    code, text = audit(run, *QUICK)
    assert code == 2
    assert "stats.jsonl cannot be read" in " ".join(text.split())


def test_images_that_the_run_did_not_train_on_are_refused(shared_run, tmp_path):
    """A picture that is removed shifts the others between members and non-members."""
    run = RunDirectory(shutil.copytree(shared_run().path, tmp_path / "run"))
    about = json.loads((run.path / "config.json").read_text())
    began = about["data"]
    about["data"] = began | {"partition": "other"}
    (run.path / "config.json").write_text(json.dumps(about))
    code, text = audit(run, *QUICK)
    assert code == 2
    assert "its clients trained on other images than those that are here. An attack" in " ".join(text.split())
    about["data"] = began | {"train": "other"}  # such as other pixels
    (run.path / "config.json").write_text(json.dumps(about))
    code, text = audit(run, *QUICK, "--references", "0", "--samples", "0", "--client", "0")
    assert code == 0, text
    assert "the pixels or labels of the training images are not those that the run began with" in " ".join(text.split())
    stats = (run.path / "stats.jsonl").read_text().splitlines()
    sizes = json.loads(stats[0])["data/num_examples"]
    stats[0] = json.dumps(json.loads(stats[0]) | {"data/num_examples": [sizes[0] + 1, *sizes[1:]]})
    (run.path / "stats.jsonl").write_text("\n".join(stats) + "\n")
    code, text = audit(run, *QUICK)
    assert code == 2
    assert f"client 0 had {sizes[0] + 1} of them, and has {sizes[0]}." in " ".join(text.split())


def test_each_attack_is_a_metric_of_its_own():
    """The larger AUC of two would be above that of a guess where nothing leaks."""

    def attack(name, auc):
        return Attack(name, auc, (0.0, 1.0), 0.1, (0.0, 1.0), np.zeros(3), np.zeros(3))

    attacks = [Attempt("", Kind.OWN, attack(name, auc)) for name in (THRESHOLD, RATIO) for auc in (0.4, 0.5)]
    attacks += [Attempt("", Kind.FINAL, attack(THRESHOLD, 0.45)), Attempt("", Kind.FINAL, attack(RATIO, 0.55))]
    attacks += [Attempt("", Kind.AUXILIARY, attack(DISTANCE, 0.6))]
    found = [(metric.name, metric.value, metric.extractor) for metric in metrics_of(Findings(attacks, []))]
    assert found == [
        ("membership-own-models", pytest.approx(0.45), THRESHOLD),
        ("membership-own-models-likelihood-ratio", pytest.approx(0.45), RATIO),
        ("membership-final", 0.45, THRESHOLD),
        ("membership-final-likelihood-ratio", 0.55, RATIO),
        ("membership-auxiliary", 0.6, DISTANCE),
    ]


def test_only_one_client_can_be_audited(shared_run):
    run = shared_run()
    code, text = audit(run, *QUICK, "--client", "2", "--references", "0")
    assert code == 0, text
    found = json.loads((run.path / "audit.json").read_text())
    assert found["clients"] == [2]
    assert [row["target"] for row in found["attacks"]] == [
        "global model", "own model of client 2, uploaded", "auxiliary set"
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "targets"),
    [
        ({"auxiliary_sharing": "images"}, {"global model", "auxiliary set"}),
        ({"algorithm": "fedavg"}, {"global model"}),
        *(
            pytest.param({"algorithm": name}, {f"model of client {k}" for k in range(4)}, marks=pytest.mark.slow)
            for name in ("mixture", "local-only")
        ),
    ],
)
def test_what_has_not_left_the_clients_is_not_attacked(shared_run, settings, targets):
    run = shared_run(**settings)
    code, text = audit(run, *QUICK, "--references", "0", "--samples", "0")
    assert code == 0, text
    assert {row["target"] for row in json.loads((run.path / "audit.json").read_text())["attacks"]} == targets


def test_the_class_of_an_own_algorithm_comes_from_the_apps_folder(shared_run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert CliRunner().invoke(app, ["new", str(tmp_path / "own")]).exit_code == 0
    run = RunDirectory(shutil.copytree(shared_run(algorithm="fedavg").path, tmp_path / "run"))
    config = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps(config | {"algorithm": "l1_proximal:L1Proximal"}))
    own = ("--algorithm", "l1_proximal:L1Proximal", "--app", str(tmp_path / "own"))
    code, text = audit(run, *QUICK, "--references", "0", "--samples", "0", *own)
    assert code == 0, text
    assert [row["target"] for row in json.loads((run.path / "audit.json").read_text())["attacks"]] == ["global model"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--client", "4"), "--client 4: the run has the clients 0 to 3."),
        (("--data-path", "/x"), "--data-path /x is one client's folder: give its number by --client."),
    ],
)
def test_wrong_options_are_refused(shared_run, options, says):
    code, text = audit(shared_run(), *options)
    assert code == 2
    assert says in text


def test_other_folders_are_refused(tmp_path):
    result = CliRunner().invoke(app, ["audit", str(tmp_path)], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "there is no completed run in it" in result.output


def test_a_reference_model_is_of_the_kind_of_its_target(small):
    """Trained on other images with other seeds, it has other weights, and equal calls give equal ones."""
    config, task, pool = small
    quick = replace(config, pretrain=replace(config.pretrain, steps=12))
    train = Targets("unused", quick, task, [0])._trainer_of(0)
    first, again, other = (snapshot(train(pool.members, number)) for number in (0, 0, 1))
    name = next(iter(first))
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
