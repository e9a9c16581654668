"""Whole runs in which every client has a folder of its own, on the real apps."""

import logging
import shutil

import pytest
from flwr.app import Context, RecordDict

import client_app
import server_app
from fedddpm_app.config import load_config
from fedddpm_app.data.dataset import open_dataset
from fedddpm_app.data.export import export_sites
from fedddpm_app.data.sites import is_site
from fedddpm_app.data.store import load_stored
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.inprocess.grid import InProcessGrid
from tests.conftest import RunDirectory

CLASSES = ",".join(str(k) for k in range(10))


@pytest.fixture
def folder(tmp_path, config):
    """Four sites and a test split on the disk."""
    export_sites(open_dataset(config.data, 0), tmp_path / "sites")
    return tmp_path / "sites"


@pytest.fixture
def deployed(run_config, folder, tmp_path):
    """Run the apps with a server that has the test split at most, and nodes that have their own folder each."""
    server_data = tmp_path / "server"

    def run(paths, **overrides):
        changes = {key.replace("_", "-"): value for key, value in overrides.items()}
        given = {"partition": "sites", "dataset": f"path:{server_data}", "class-names": CLASSES, "run-name": "deployed"}
        resolved = run_config | given | changes
        load_config(resolved)
        grid = InProcessGrid(client_app.app, len(paths), resolved)
        for context, path in zip(grid.contexts.values(), paths, strict=True):
            context.node_config = {"partition-id": context.node_config["partition-id"], "data-path": str(path)}
        server = Context(run_id=grid.run.run_id, node_id=1, node_config={}, state=RecordDict(), run_config=resolved)
        server_app.app(grid=grid, context=server)
        return RunDirectory(tmp_path / "deployed")

    return run


def paths_of(folder):
    return [folder / f"site-{k:04d}" for k in range(4)]


def test_a_site_that_has_other_images_after_a_resume_is_named(deployed, folder, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("fedddpm"), "propagate", True)
    quick = {"algorithm": "fedavg", "eval_every": 0, "preview_every": 0}
    run = deployed(paths_of(folder), num_rounds=1, **quick)
    before = run.stats[0]["data/num_examples"]
    for path in sorted(paths_of(folder)[2].rglob("*.png"))[:10]:  # 9 of them, or all, were to train on
        path.unlink()
    load_stored.cache_clear()
    open_dataset.cache_clear()
    deployed(paths_of(folder), num_rounds=2, resume=str(run.path), **quick)
    assert f"client 2 began the run with {before[2]} training images, and has {before[2] - 9} now" in caplog.text
    assert not any(f"client {k} began the run" in caplog.text for k in (0, 1, 3))


@pytest.mark.slow
@pytest.mark.parametrize("conditional", [False, True])
def test_sites_on_their_own_hosts_train_as_in_the_simulation(run_app, deployed, folder, tmp_path, conditional):
    here = run_app(
        partition="sites", dataset=f"path:{folder}", class_names=CLASSES, class_conditional=conditional, num_rounds=1
    )
    (tmp_path / "server").mkdir()
    (folder / "test").rename(tmp_path / "server" / "test")
    there = deployed(paths_of(folder), class_conditional=conditional, num_rounds=1)
    assert here.losses() == there.losses()
    assert here.stats[0]["data/num_examples"] == there.stats[0]["data/num_examples"]
    assert sum(here.stats[0]["data/num_examples"]) == 1293
    weights = [next(run.path.glob("checkpoints/*/model.safetensors")).read_bytes() for run in (here, there)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_server_without_any_images_measures_nothing_and_runs(deployed, folder, caplog):
    run = deployed(paths_of(folder))
    assert run.summary["status"] == "completed"
    assert "there is no test split on this host" in caplog.text
    assert all("eval/loss" not in row for row in run.stats)
    assert all("client-eval/loss" in row for row in run.rounds())


def test_a_site_that_cannot_load_its_data_is_named_and_the_others_go_on(deployed, folder, caplog):
    """Its own log names files, folders and classes; the server learns the kind of the problem, and counts."""
    missing, unreadable, alone = folder / "nowhere", folder / "site-0001", folder / "site-0002"
    shutil.rmtree(alone)
    shutil.copytree(folder / "site-0003" / "5", alone / "Doe, Jane")
    picture = next(unreadable.rglob("*.png"))
    picture.write_bytes(b"no picture")
    run = deployed([missing, unreadable, alone, folder / "site-0003"], num_rounds=1)
    left_out = run.stats[0]["data/left_out"]
    assert sorted(left_out) == ["0", "1", "2"]
    assert "there is no such folder on this host" in left_out["0"]
    assert "max-bad-images = 0" in left_out["1"]
    assert "but 1 or more images" in left_out["1"]
    assert "also has a class" in left_out["2"]
    for name in (str(folder), "nowhere", picture.name, "Doe", "Jane"):
        assert name not in (run.path / "stats.jsonl").read_text()
        assert name in caplog.text
    assert run.stats[0]["data/num_examples"][:3] == [None, None, None]
    assert "the check of the data: client 1 is left out" in caplog.text
    [row] = run.rounds()
    assert sorted(row["train/left_out"]) == ["0", "1", "2"]
    assert list(row["train/client_loss"]) == ["3"]
    assert run.summary["status"] == "completed"


@pytest.mark.slow
def test_a_conditional_model_wants_labels_at_every_site(deployed, folder):
    for picture in (folder / "site-0000").rglob("*.png"):
        picture.rename(folder / "site-0000" / picture.name)
    for empty in [path for path in (folder / "site-0000").iterdir() if path.is_dir()]:
        empty.rmdir()
    run = deployed(paths_of(folder), class_conditional=True, num_rounds=1)
    assert "class-conditional = true needs labels" in run.stats[0]["data/left_out"]["0"]


@pytest.mark.parametrize(("algorithm", "what"), [("fedavg", "round 1"), ("fedddpm", "pretrain")])
def test_fewer_than_min_replies_end_the_run(deployed, folder, algorithm, what):
    paths = [folder / "nowhere", *paths_of(folder)[1:]]
    with pytest.raises(
        RoundFailedError, match=rf"{what}: 3 of the 4 clients returned a usable reply, fewer than min-replies = 4"
    ):
        deployed(paths, algorithm=algorithm, min_replies=4)


def test_what_a_site_holds_stays_there_whatever_goes_wrong(deployed, folder, caplog, monkeypatch):
    """Errors of libraries quote files and their content, and errors of the cache name folders of the host."""

    def loading(config):
        if not is_site(config):
            return load_stored(config)
        raise ValueError("could not convert 'Doe, Jane' of /srv/patients/Doe, Jane.png to an image")

    monkeypatch.setattr("fedddpm_app.data.dataset.load_stored", loading)
    with pytest.raises(
        RoundFailedError, match=r"client 0: its images cannot be used \(ValueError\): the log"
    ) as failed:
        deployed(paths_of(folder), algorithm="fedavg", num_rounds=1)
    assert "Doe" not in str(failed.value)
    assert "/srv/patients/Doe, Jane.png" in caplog.text
