"""What dead runs leave, and what is removed of it."""

import json
import os
import time

from typer.testing import CliRunner

from fedddpm_app.cli import app
from fedddpm_app.disk.owned import LOCK, OwnedFolder, OwnerLock
from fedddpm_app.launch import homes
from fedddpm_app.launch.flower_run import CONFIG_PREFIX
from fedddpm_app.launch.leftovers import find_left_overs
from fedddpm_app.recording.status import now
from fedddpm_app.recording.status_file import StatusFile
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
    for path in ("scratch/reply", "unfinished/client-0.safetensors", "checkpoints/partial-round-0002/state.json"):
        (directory / path).parent.mkdir(parents=True)
        (directory / path).write_bytes(bytes(10))
    (directory / "config.json").write_text(
        json.dumps({"run_id": str(run_id), "run_config": {"state-dir": str(parent / "state")}})
    )
    summary = {"status": state, "ended": now(), "directory": str(directory)}
    (directory / "summary.json").write_text(json.dumps(summary))
    (parent / "state" / f"run-{run_id}").mkdir(parents=True, exist_ok=True)
    return directory


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def test_clean_shows_asks_and_keeps_what_a_resumed_run_needs(tmp_path, temporary, memory):
    parent, runner = tmp_path / "runs", CliRunner()
    done, stopped, alive = (a_run(parent, *run) for run in (("a", "completed", 1), ("b", "failed", 2), ("c", "", 3)))
    server = StatusFile(alive)
    server.begin()
    shown = runner.invoke(app, ["clean", str(parent)], input="n\n")
    kept = shown.output.partition("kept, because a resumed run continues from it")[2]
    assert "finished pieces of a phase" in kept
    assert (done / "scratch").exists()
    assert "removed 6 of 6" in runner.invoke(app, ["clean", str(parent), "--yes"]).output
    assert names_in(done) & {"scratch", "unfinished", "owner.lock"} == set()
    assert [names_in(directory / "checkpoints") for directory in (done, stopped)] == [set(), set()]
    assert all((directory / "unfinished").exists() for directory in (stopped, alive))
    assert (alive / "checkpoints" / "partial-round-0002").exists()
    assert names_in(parent / "state") == {"run-2", "run-3"}
    runner.invoke(app, ["clean", str(parent), "--yes", "--resumable"])
    assert names_in(stopped) == {"config.json", "summary.json", "checkpoints"}
    assert (alive / "scratch").exists()
    server.end({"status": "completed"})
    assert "--headless" in runner.invoke(app, ["clean", "--help"]).output


def test_a_copy_of_a_run_does_not_own_the_states_of_its_clients(tmp_path, temporary, memory):
    a_run(tmp_path, "original", "failed", 1)
    copy = a_run(tmp_path, "copy", "completed", 1)
    summary = json.loads((copy / "summary.json").read_text()) | {"directory": str(tmp_path / "original")}
    (copy / "summary.json").write_text(json.dumps(summary))
    found = [(item.path.name, item.is_resumable) for item in find_left_overs(tmp_path) if item.path.name == "run-1"]
    assert found == [("run-1", True)]


def test_a_run_directory_from_elsewhere_cannot_have_other_files_removed(tmp_path, temporary, memory, monkeypatch):
    """Its server says which folder has the states of its clients, and that this host made it."""
    a_run(tmp_path, "run", "completed", 1)
    thesis = tmp_path / "state" / "run-1" / "thesis.tex"
    thesis.touch()
    assert not any("client states" in item.kind for item in find_left_overs(tmp_path))
    thesis.rename(thesis.with_name(f"client-0001-round-0002-{'0' * 64}.safetensors"))
    assert any("client states" in item.kind for item in find_left_overs(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "summary.json").write_text(json.dumps({"status": "completed", "directory": "run"}))
    assert not any("client states" in item.kind for item in find_left_overs(tmp_path))


def test_runs_of_other_users_are_not_looked_at(tmp_path, temporary, memory, monkeypatch):
    directory = a_run(tmp_path, "run", "completed", 1)
    monkeypatch.setattr(os, "getuid", lambda: directory.stat().st_uid + 1)
    assert find_left_overs(tmp_path) == []


def test_a_file_that_a_live_process_still_writes_is_never_removed(tmp_path, temporary, memory):
    """Also another command writes into the folder of a completed run, such as `sample` or `fetch`."""
    directory, old = a_run(tmp_path, "run", "completed", 1), time.time() - 7200
    ages = {f"a.png.{os.getpid()}.partial": old, f"b.png.{2**22 + 1}.partial": old, f"c.png.{2**22 + 1}.partial": None}
    for name, changed in ages.items():
        (directory / name).touch()
        os.utime(directory / name, changed and (changed, changed))
    left = [item.path.name for item in find_left_overs(tmp_path) if item.path.suffix == ".partial"]
    assert left == [f"b.png.{2**22 + 1}.partial"]


def test_a_run_that_is_resumed_after_the_look_keeps_its_files(tmp_path, temporary, memory):
    directory = a_run(tmp_path, "run", "failed", 1)
    found = find_left_overs(tmp_path)
    lock = OwnerLock(directory / LOCK)  # its status is still that of the last end
    assert lock.acquire()
    assert not any(item.remove() for item in found)
    lock.release()
    assert (directory / "unfinished").exists()
