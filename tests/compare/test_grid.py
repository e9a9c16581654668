"""A tiny grid with the real command: broken, repaired, finished, and called again."""

import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from fedddpm_app.compare import outputs
from fedddpm_app.compare.publish import section
from fedddpm_app.disk.owned import LOCK, OwnerLock
from tests.compare.conftest import ROWS, Grid
from tests.conftest import ROOT

CURVES = {"curves-fd-pixels-pca.png", "curves-memorized-share.png"}
PICTURES = {"claim.png", "trade-off.png", "samples-iid.png"} | CURVES


@pytest.mark.slow
def test_a_grid_is_broken_repaired_finished_and_called_again(tmp_path):
    """One test, because each of its steps needs the runs of the steps before."""
    grid = Grid(tmp_path)
    check_that_a_failed_cell_stops_no_other(grid)
    check_that_the_next_call_resumes_failed_cells(grid)
    check_the_results(grid)
    check_that_published_cells_are_restored_elsewhere(grid)
    check_that_a_finished_grid_runs_nothing_again(grid)
    check_that_another_measure_is_left_out(grid)
    check_that_what_is_special_about_a_cell_is_named(grid)
    check_that_another_grid_shares_its_cells(grid)
    check_that_another_config_and_a_second_command_are_refused(grid)


def check_that_a_failed_cell_stops_no_other(grid):
    grid.flag.touch()
    result = grid.call()
    assert result.exit_code == 1, result.output
    assert result.output.count("failed: the flag is set") == 2
    assert f"(its output: {grid.out}/fragile/iid/seed-0.log)" in result.output
    states = {name: json.loads(path.read_text())["status"] for name, path in grid.cells().items()}
    completed = {"fedavg seed-0": "completed", "fedavg seed-1": "completed"}
    assert states == completed | {"fragile seed-0": "failed", "fragile seed-1": "failed"}
    assert "RuntimeError: the flag is set" in (grid.out / "fragile" / "iid" / "seed-0.log").read_text()
    assert "fragile, iid, seed 1: `the flag is set`" in (grid.out / "table.md").read_text()


def check_that_the_next_call_resumes_failed_cells(grid):
    """The last checkpoint of seed 0 is damaged, and all of seed 1, which starts again, and keeps what it had."""
    before = grid.files()
    grid.flag.unlink()
    first, second = (grid.out / "fragile" / "iid" / f"seed-{seed}" for seed in (0, 1))
    for path in (first / "checkpoints" / "round-0001", *second.glob("checkpoints/round-*")):
        (path / "model.safetensors").write_bytes(b"")
    result = grid.call("--publish", str(grid.folder / "results"))
    assert result.exit_code == 0, result.output
    assert "2 complete, 2 to resume" in result.output
    after = grid.files()
    assert {name for name in after if after[name] == before[name]} == {"fedavg seed-0", "fedavg seed-1"}
    assert "resumed after round 0" in (first / "log.txt").read_text()
    assert "resumed" not in (second / "log.txt").read_text()
    assert "the cell starts again" in second.with_name("seed-1.log").read_text()
    assert "the flag is set" in (second.with_name("seed-1.damaged-1") / "log.txt").read_text()


def check_the_results(grid):
    """Both rows are the same algorithm, so their difference is zero for every seed."""
    results = grid.results()
    assert [cell["status"] for cell in results["cells"]] == ["completed"] * 4
    assert len(results["sessions"]) == 2
    first, second = results["settings"]
    assert (first["label"], first["n"], second["n"]) == ("fedavg", 2, 2)
    metric = second["metrics"]["fd-pixels-pca"]
    assert metric["mean"] == first["metrics"]["fd-pixels-pca"]["mean"] > metric["floor"] > 0
    assert metric["differences"] == {"fedavg": {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 2}}
    assert first["metrics"]["fd-pixels-pca"]["differences"] == {}
    assert second["steps"] == second["expected"]["steps"] == 2 * 2 * 3  # rounds x clients x local steps
    total = json.loads(grid.cells()["fedavg seed-0"].read_text())["time/total_s"]
    assert 0 < results["cells"][0]["seconds"] < total
    assert results["commits"] == results["cells"][0]["git_commits"]
    assert "| fragile |" in (grid.out / "table.md").read_text()
    assert {p.name for p in grid.out.glob("*.png")} == PICTURES
    published = grid.folder / "results"
    assert {path.name for path in (published / "tiny").iterdir()} >= {"claim.png", "table.md"}
    for path in (published / "tiny.json", published / "tiny" / "table.md"):
        assert str(grid.folder.parent) not in path.read_text()
    text = section(published)
    pictures = "](results/tiny/claim.png)", "](results/tiny/trade-off.png)"
    for part in ("### tiny", "| fragile |", *pictures, "Run by `fedddpm", "](results/tiny.json)."):
        assert part in text


def check_that_published_cells_are_restored_elsewhere(grid):
    """On another machine, only the published files are there: nothing is run, and the results are the same."""
    published, again, folder = grid.folder / "results", grid.folder / "again", grid.folder / "elsewhere"
    folder.mkdir()
    other = Grid(folder, rows=ROWS.replace("{flag}", str(grid.flag)))
    plan = other.call("--restore", str(published), "--dry-run", "-c", "local-steps=4")
    assert "4 cells (rows: 2, conditions: 1, seeds: 2): 4 to run;" in plan.output
    assert not other.out.exists()
    result = other.call("--restore", str(published), "--publish", str(again))
    assert result.exit_code == 0, result.output
    assert "4 cells (rows: 2, conditions: 1, seeds: 2): 4 published;" in result.output
    assert "started" not in result.output
    next_call = other.call()
    assert next_call.exit_code == 0, next_call.output
    assert "4 complete;" in next_call.output
    assert (again / "tiny.json").read_text() == (published / "tiny.json").read_text()
    names = {path.name for path in (published / "tiny").iterdir()}
    assert names == {"cells.zip", "table.md"} | PICTURES
    for name in names:
        assert (again / "tiny" / name).read_bytes() == (published / "tiny" / name).read_bytes(), name
    with zipfile.ZipFile(published / "tiny" / "cells.zip") as archive:
        assert not any(str(grid.folder.parent).encode() in archive.read(name) for name in archive.namelist())
        assert {Path(name).name for name in archive.namelist()} == {
            *("solved.json", "origin.json", "config.json", "summary.json", "stats.jsonl", "round-0002.png")
        }
    check_that_an_incomplete_grid_is_continued_elsewhere(other, published, again)
    check_that_no_published_cell_is_lost(other, published, grid.flag)
    (again / "tiny" / "cells.zip").write_bytes(b"PK")
    result = other.call("--restore", str(again))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert f"--restore = {again}: the cells of tiny cannot be read" in result.stderr


def check_that_an_incomplete_grid_is_continued_elsewhere(other, published, again):
    """The cell that is run there is measured with the published extractor, and can be compared."""
    shutil.rmtree(other.out)
    with (
        zipfile.ZipFile(published / "tiny" / "cells.zip") as old,
        zipfile.ZipFile(again / "tiny" / "cells.zip", "w") as new,
    ):
        for name in old.namelist():
            if name != "fedavg/iid/seed-1/summary.json":
                new.writestr(name, old.read(name))
    third = other.folder / "third"
    result = other.call("--restore", str(again), "--publish", str(third), "--no-run")
    assert result.exit_code == 0, result.output
    assert "3 published, 1 to run;" in result.output
    assert "started" not in result.output
    assert "3 of 4 cells are complete." in section(third)
    cache = other.folder / "cache"
    result = other.call("--restore", str(again), "-c", f'cache-dir="{cache}"')
    assert result.exit_code == 0, result.output
    assert result.output.count("started: ") == 1
    sources = {path.name: path.read_bytes() for path in published.glob("extractors/*/*.safetensors")}
    assert {path.name: path.read_bytes() for path in cache.glob("extractors/*.safetensors")} == sources
    assert len(sources) == 2  # the classifier counts classes
    assert other.results()["measured_otherwise"] == []
    shutil.rmtree(other.out / "fedavg" / "iid" / "seed-1")


def check_that_no_published_cell_is_lost(other, published, flag):
    result = other.call("--publish", str(published))
    assert result.exit_code == 2, result.output
    assert "has complete cells (1) of tiny" in result.stderr
    assert f"such as fedavg | iid | seed 1: add --restore {published} to keep them" in result.stderr
    shutil.rmtree(other.out)
    less = Grid(other.folder, "less", rows="[rows.fedavg]\n")
    result = less.call("--restore", str(published), "--publish", str(published), "--no-run")
    assert result.exit_code == 2, result.output
    lacks = "has complete cells (2) of tiny that this grid lacks or has with another config"
    assert f"{lacks}, such as fragile/iid/seed-0: give the grid another name" in result.stderr
    before = (published / "tiny.json").read_bytes()
    flag.touch()
    result = other.call("--publish", str(published), "-c", "local-steps=1")
    flag.unlink()
    assert result.exit_code == 1, result.output
    assert result.output.count("failed: the flag is set") == 2
    assert f"not published, because cells failed: --publish = {published} has complete cells" in result.output
    assert (published / "tiny.json").read_bytes() == before
    shutil.rmtree(other.out)


def check_that_a_finished_grid_runs_nothing_again(grid):
    before = grid.files()
    (grid.out / "table.md").unlink()
    result = grid.call()
    assert result.exit_code == 0, result.output
    assert "started" not in result.output
    assert grid.files() == before
    assert len(grid.results()["sessions"]) == 2
    assert (grid.out / "table.md").exists()


def check_that_another_measure_is_left_out(grid):
    """The digest of the extractor of all cells with the second seed differs from that of the first cell."""
    before = {path: path.read_text() for name, path in grid.cells().items() if name.endswith("seed-1")}
    for path, text in before.items():
        found = json.loads(text)
        found["metrics"][0]["extractor_digest"] = "another"
        path.write_text(json.dumps(found))
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "plot_curves", lambda _, metric, histories, __: seen.append((metric, histories)))
        result = grid.call()
    for path, text in before.items():
        path.write_text(text)
    name = found["metrics"][0]["name"]
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.split())
    assert f"those of the first cell: 2 metrics, such as fedavg | iid | seed 1: {name}; results.json" in output
    results = grid.results()
    assert [each["metrics"][name]["n"] for each in results["settings"]] == [1, 1]
    assert results["settings"][1]["metrics"][name]["differences"]["fedavg"]["n"] == 1
    assert results["measured"][name]["extractor_digest"] != "another"
    assert [len(runs) for metric, histories in seen if metric == name for runs in histories.values()] == [1, 1]


def check_that_what_is_special_about_a_cell_is_named(grid):
    summary = grid.cells()["fragile seed-1"]
    before = summary.read_text()
    found = json.loads(before)
    found["metrics"][0] |= {"n": 7, "note": "odd: 3% of them", "left_out": ["client-0001"]}
    summary.write_text(json.dumps(found))
    grid.call()
    summary.write_text(before)
    table = (grid.out / "table.md").read_text()
    assert "Other cells: 7 generated images (" in table
    assert "† Odd: fragile (iid: 1 of 2 seeds)." in table
    assert "fragile, iid, seed 1: evaluation without 1" in table
    metric = grid.results()["settings"][1]["metrics"][found["metrics"][0]["name"]]
    assert (metric["n"], metric["differences"]["fedavg"]["n"]) == (2, 1)  # a seed without a client's model is no pair


def check_that_another_grid_shares_its_cells(grid):
    """Only the row is another one; its cells are links. The last seed is new, and the removed run is run again."""
    before, first = grid.files(), grid.results()
    other = Grid(grid.folder, "other", '[rows.base]\nalgorithm = "fedavg"\nmoon-mu = 7.0\n')
    result = other.call()
    assert result.exit_code == 0, result.output
    assert "2 cells (rows: 1, conditions: 1, seeds: 2): 2 complete in other grids;" in result.output
    assert "started" not in result.output
    assert grid.files() == before
    results = other.results()
    assert [cell["of_grid"] for cell in results["cells"]] == ["out", "out"]
    assert results["sessions"] == []
    assert results["settings"][0]["metrics"] == {
        name: metric | {"differences": {}} for name, metric in first["settings"][0]["metrics"].items()
    }
    (other.out / "base" / "iid" / "seed-1").unlink()
    (other.out / "base" / "iid" / "seed-1").symlink_to("../../../removed/seed-1")
    result = other.call("-c", "local-steps=4")
    assert result.exit_code == 2
    assert "base/iid/seed-0 was made with another config" in result.stderr
    (other.out / "base" / "iid" / "seed-0").unlink()
    result = other.call("-c", "local-steps=4")
    assert result.exit_code == 0, result.output
    assert "2 to run" in result.output
    assert not (other.out / "base" / "iid" / "seed-1").is_symlink()
    assert grid.files() == before
    own = Grid(grid.folder, "own", ROWS[ROWS.index("[rows.fragile]") :])
    assert "2 cells (rows: 1, conditions: 1, seeds: 2): 2 to run;" in own.call("--dry-run").output


def check_that_another_config_and_a_second_command_are_refused(grid):
    result = grid.call("-c", "local-steps=4")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "fedavg/iid/seed-0 was made with another config: local-steps was 3 and is 4." in result.stderr
    lock = OwnerLock(grid.out / LOCK)
    assert lock.acquire()
    try:
        result = grid.call()
    finally:
        lock.release()
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "another `fedddpm compare` works in it" in result.stderr


@pytest.mark.long
@pytest.mark.slow
def test_a_stopped_command_stops_its_cells_in_order_and_the_next_call_finishes_them(tmp_path):
    grid = Grid(tmp_path)
    arguments = ["--app", str(ROOT), "--out", str(grid.out), "--jobs", "2", "-c", "num-rounds=25 local-steps=10"]
    command = [sys.executable, "-m", "fedddpm_app.cli", "compare", str(grid.file), *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 120
        while len({path.parent for path in grid.out.rglob("checkpoints/round-*")}) < 2 and time.monotonic() < until:
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
