"""What dead runs leave, and what is removed of it."""

import json

from typer.testing import CliRunner

from fedddpm_app.cli import app
from fedddpm_app.launch import homes
from fedddpm_app.launch.flower_run import CONFIG_PREFIX
from fedddpm_app.launch.leftovers import find_left_overs
from fedddpm_app.owned import OwnedFolder
from fedddpm_app.recording.status import StatusFile, now
from tests.faults.conftest import abandon


def test_what_certainly_dead_owners_left_is_found_and_nothing_else(tmp_path, temporary, memory):
    kept = [OwnedFolder.create(prefix, parent) for prefix, parent in ((CONFIG_PREFIX, None), ("fedddpm-", memory))]
    dead = {abandon(OwnedFolder.create(CONFIG_PREFIX)), abandon(OwnedFolder.create("fedddpm-", memory))}
    dead.add(abandon(OwnedFolder.create(homes.PREFIX)))
    (temporary / f"{CONFIG_PREFIX}my-notes").mkdir()  # a user's own
    (temporary / f"{CONFIG_PREFIX}12345678").mkdir()  # without a lock: of an older version, or not ours
    assert {item.path for item in find_left_overs()} == dead
    assert all(item.remove() for item in find_left_overs())
    assert not any(path.exists() for path in dead)
    assert all(folder.path.exists() for folder in kept)
    for folder in kept:
        folder.close()


def a_run(parent, name, state, run_id):
    directory = parent / name
    (directory / "scratch").mkdir(parents=True)
    (directory / "scratch" / "client-0.safetensors").write_bytes(bytes(10))
    (directory / "config.json").write_text(
        json.dumps({"run_id": str(run_id), "run_config": {"state-dir": str(parent / "state")}})
    )
    (directory / "summary.json").write_text(json.dumps({"status": state, "ended": now()}))
    (parent / "state" / f"run-{run_id}").mkdir(parents=True)
    return directory


def test_clean_shows_asks_and_keeps_what_a_resumed_run_needs(tmp_path, temporary, memory):
    parent, runner = tmp_path / "runs", CliRunner()
    done, stopped, alive = (a_run(parent, *run) for run in (("a", "completed", 1), ("b", "failed", 2), ("c", "", 3)))
    server = StatusFile(alive)
    server.begin()
    shown = runner.invoke(app, ["clean", str(parent)], input="n\n")
    assert "kept, because the run can be resumed" in shown.output
    assert (done / "scratch").exists()
    assert "removed 2 of 2" in runner.invoke(app, ["clean", str(parent), "--yes"]).output
    left = [directory.name for directory in (done, stopped, alive) if (directory / "scratch").exists()]
    assert left == ["b", "c"]
    assert sorted(path.name for path in (parent / "state").iterdir()) == ["run-2", "run-3"]
    runner.invoke(app, ["clean", str(parent), "--yes", "--resumable"])
    assert not (stopped / "scratch").exists()
    assert (stopped / "summary.json").exists()
    assert (alive / "scratch").exists()
    server.end({"status": "completed"})
    assert "--headless" in runner.invoke(app, ["clean", "--help"]).output
