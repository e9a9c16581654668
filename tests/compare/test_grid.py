"""A tiny grid with the real command: broken, repaired, finished, and called again. The tests run in this order."""

import json
import signal
import subprocess
import sys
import time

import pytest

from fedddpm_app.disk.owned import LOCK, OwnerLock
from tests.compare.conftest import Grid
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def broken(grid):
    """The first call, while one row fails in its second round."""
    grid.flag.touch()
    return grid.call()


@pytest.fixture(scope="module")
def finished(grid, broken):
    """The second call, after the repair, and the files of the cells that were complete before."""
    before = {name: path.stat().st_mtime_ns for name, path in grid.cells().items()}
    grid.flag.unlink()
    return grid.call("--publish", str(grid.folder / "results")), before


def test_a_failed_cell_does_not_stop_the_others_and_is_named(grid, broken):
    assert broken.exit_code == 1, broken.output
    assert broken.output.count("failed: the flag is set") == 2
    assert f"(its output: {grid.out}/fragile/iid/seed-0.log)" in broken.output
    states = {name: json.loads(path.read_text())["status"] for name, path in grid.cells().items()}
    assert states == {
        "fedavg seed-0": "completed",
        "fedavg seed-1": "completed",
        "fragile seed-0": "failed",
        "fragile seed-1": "failed",
    }
    assert "RuntimeError: the flag is set" in (grid.out / "fragile" / "iid" / "seed-0.log").read_text()


def test_the_next_call_resumes_failed_cells_and_skips_complete_ones(grid, finished):
    result, before = finished
    assert result.exit_code == 0, result.output
    assert "2 complete, 2 to resume" in result.output
    after = {name: path.stat().st_mtime_ns for name, path in grid.cells().items()}
    assert {name for name in after if after[name] == before[name]} == {"fedavg seed-0", "fedavg seed-1"}
    assert "resumed after round 1" in (grid.out / "fragile" / "iid" / "seed-1" / "log.txt").read_text()


def test_the_results_pair_the_seeds(grid, finished):
    """Both rows are the same algorithm, so their difference is zero for every seed."""
    results = grid.results()
    assert [cell["status"] for cell in results["cells"]] == ["completed"] * 4
    assert len(results["sessions"]) == 2
    first, second = results["settings"]
    assert (first["label"], first["n"], second["n"]) == ("fedavg", 2, 2)
    metric = second["metrics"]["fd-pixels-pca"]
    assert metric["mean"] == first["metrics"]["fd-pixels-pca"]["mean"] > metric["floor"] > 0
    assert metric["difference"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 2}
    assert first["metrics"]["fd-pixels-pca"]["difference"] is None
    assert second["steps"] == second["expected"]["steps"] == 2 * 2 * 3  # rounds x clients x local steps
    assert "| fragile |" in (grid.out / "table.md").read_text()


def test_the_pictures_are_written(grid, finished):
    names = {path.name for path in grid.out.glob("*.png")}
    assert names == {"claim.png", "curves-fd-pixels-pca.png", "samples-iid.png"}


def test_published_results_name_no_folder_of_this_machine(grid, finished):
    published = grid.folder / "results"
    assert {path.name for path in (published / "tiny").iterdir()} >= {"claim.png", "table.md"}
    assert str(grid.folder.parent) not in (published / "tiny.json").read_text()
    assert str(grid.folder.parent) not in (published / "tiny" / "table.md").read_text()


def test_a_finished_grid_runs_nothing_again(grid, finished):
    before = {name: (path.stat().st_mtime_ns, path.stat().st_ino) for name, path in grid.cells().items()}
    (grid.out / "results.json").unlink()
    result = grid.call()
    assert result.exit_code == 0, result.output
    assert "started" not in result.output
    assert {n: (p.stat().st_mtime_ns, p.stat().st_ino) for n, p in grid.cells().items()} == before
    assert grid.results()["settings"][0]["n"] == 2


def test_a_changed_config_is_refused(grid, finished):
    result = grid.call("-c", "local-steps=4")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "fedavg/iid/seed-0 was made with another config: local-steps was 3 and is 4." in result.stderr


def test_a_second_command_on_the_same_folder_is_refused(grid, finished):
    lock = OwnerLock(grid.out / LOCK)
    assert lock.acquire()
    try:
        result = grid.call()
    finally:
        lock.release()
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "another `fedddpm compare` works in it" in result.stderr


@pytest.mark.slow
def test_a_stopped_command_stops_its_cells_in_order_and_the_next_call_finishes_them(tmp_path):
    grid = Grid(tmp_path)
    arguments = ["--app", str(ROOT), "--out", str(grid.out), "--jobs", "2", "-c", "num-rounds=25 local-steps=10"]
    command = [sys.executable, "-m", "fedddpm_app.cli", "compare", str(grid.file), *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 120
        while not (list(grid.out.rglob("checkpoints/round-*")) or time.monotonic() > until):
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGTERM, output
    assert f"stopped; the same command continues this grid: {grid.out}" in output
    states = [json.loads(path.read_text()) for path in grid.cells().values()]
    assert [(state["status"], state["stopped_by"]) for state in states] == [("interrupted", "SIGTERM")] * 2
    again = grid.call("-c", "num-rounds=25 local-steps=10")
    assert again.exit_code == 0, again.output
    assert "2 to resume, 2 to run" in again.output
    assert "resumed after round" in "".join(path.read_text() for path in grid.out.rglob("log.txt"))
    assert [cell["status"] for cell in grid.results()["cells"]] == ["completed"] * 4
