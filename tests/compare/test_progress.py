"""The time left, and the place of a running cell, from the files of the cells."""

import json
import time
from types import SimpleNamespace

from fedddpm_app.compare.cells import REFUSED, Cell, Line, Setting, State, reason_of_end
from fedddpm_app.compare.pool import Running
from fedddpm_app.compare.progress import GridProgress, place_of
from fedddpm_app.federation.cost import Cost


def cell(folder, row, steps, seconds=None):
    setting = Setting(Line(row), "iid", {}, SimpleNamespace(), {}, Cost(steps), None)
    directory = folder / f"{row}-{steps}-{seconds}"
    directory.mkdir()
    if seconds is not None:
        (directory / "summary.json").write_text(json.dumps({"status": "completed", "time/total_s": seconds}))
    return Cell(setting, 0, directory)


def test_the_time_left_is_that_of_the_same_row_if_one_is_done(tmp_path):
    """Row a: 0.1 s per step. Row b: as all, (10 + 30) / (100 + 100) s per step. Two cells at a time."""
    done = [cell(tmp_path, "a", 100, 10.0), cell(tmp_path, "c", 100, 30.0)]
    left = [cell(tmp_path, "a", 200), cell(tmp_path, "b", 50)]
    progress = GridProgress(dict.fromkeys(done, State.COMPLETED) | dict.fromkeys(left, State.NEW), jobs=2)
    assert (progress.total, progress.completed) == (4, 2)
    assert progress.seconds_left([]) == (20 + 10) / 2
    progress.started(left[0])
    running = [Running(left[0], SimpleNamespace(), time.monotonic() - 4)]
    assert round(progress.seconds_left(running), 1) == 16.0  # the longest of the running cells
    progress.started(left[1])
    assert progress.ended(left[1], -9) == "its process was killed by signal 9 (out of memory?)"
    assert list(progress.failed) == [left[1]]


def test_a_cell_that_is_refused_has_its_new_reason_not_that_of_an_earlier_call(tmp_path):
    failed = cell(tmp_path, "a", 100)
    (failed.directory / "summary.json").write_text(json.dumps({"status": "failed", "error": "diverged"}))
    failed.log.write_text("resume: the run was made with another config\n")
    assert reason_of_end(failed, 1) == "diverged"
    assert reason_of_end(failed, REFUSED) == "exit code 2: resume: the run was made with another config"


def test_nothing_is_estimated_before_the_first_end(tmp_path):
    assert GridProgress({cell(tmp_path, "a", 200): State.NEW}, jobs=1).seconds_left([]) is None


def test_the_place_of_a_cell_is_its_last_progress_line(tmp_path):
    running = cell(tmp_path, "a", 200)
    assert place_of(running) == "starting"
    lines = ["[fedddpm] phase=train round=3/8 client=1 step=40/160 loss=0.1234 left=12s", "another line"]
    (running.directory / "log.txt").write_text("\n".join(lines))
    assert place_of(running) == "round 3/8, train 40/160"
