"""Disks that fill up: complete lines, a last summary, and the reason."""

import contextlib
import multiprocessing
import os
import pkgutil
import resource
import subprocess
import sys
import unittest.mock
from pathlib import Path

import pytest

from fedddpm_app.recording.files import RecordingError, append_line
from fedddpm_app.recording.status import read_status
from fedddpm_app.recording.status_file import StatusFile
from tests.conftest import run_of
from tests.faults.conftest import lines_of

FORK = multiprocessing.get_context("fork")


def test_a_line_that_does_not_fit_is_cut_back_and_a_half_line_is_removed(tmp_path):
    path = tmp_path / "stats.jsonl"
    append_line(path, {"round": 1})
    size, limits = path.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, limits[1]))
    try:
        with pytest.raises(RecordingError, match=r"stats\.jsonl cannot be written"):
            append_line(path, {"round": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.stat().st_size == size
    with path.open("a") as file:
        file.write('{"round": 2, "lo')  # of a killed process
    append_line(path, {"round": 2})
    assert lines_of(tmp_path) == [{"round": 1}, {"round": 2}]


def test_the_last_summary_is_written_although_no_new_file_can_be(tmp_path, monkeypatch):
    server = StatusFile(tmp_path)
    server.begin()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    server.end({"status": "failed", "error": "x cannot be written"})
    assert read_status(tmp_path).error == "x cannot be written"


FILES = {  # the file that does not fit: (the call before which the disk fills up, the bytes that a file may have)
    "config.json": ("fedddpm_app.apps.server.open_run", 2000),
    "stats.jsonl": ("fedddpm_app.client.worker.Worker.train", None),  # no further line
    "checkpoints": ("fedddpm_app.client.worker.Worker.train", 100_000),
}


def run_with_full_disk(run_config, file):
    """Run in this child process; the limit of a file's size stands for a full disk, and needs no rights."""
    where, limit = FILES[file]
    original, stats = pkgutil.resolve_name(where), Path(run_config["output-dir"]) / "run" / "stats.jsonl"

    def fill_up(*arguments):
        num_bytes = limit or stats.stat().st_size + 10
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))
        return original(*arguments)

    with contextlib.suppress(Exception), unittest.mock.patch(where, fill_up):
        run_of(run_config, {"algorithm": "fedavg", "transport": "flat", "num-rounds": 1})
    os._exit(0)


@pytest.mark.parametrize("file", ["config.json", "stats.jsonl", pytest.param("checkpoints", marks=pytest.mark.slow)])
def test_a_file_that_does_not_fit_ends_the_run_as_failed_with_the_reason(run_config, file):
    child = FORK.Process(target=run_with_full_disk, args=(run_config, file))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    directory = Path(run_config["output-dir"]) / "run"
    status = read_status(directory)
    assert (status.state, "cannot be written (" in status.error, file in status.error) == ("failed", True, True)
    assert file == "config.json" or lines_of(directory)
    assert not {"owner.lock", "reserve.bin"} & {path.name for path in directory.iterdir()}


FULL_DISKS = """
import json, shutil, subprocess, sys
from pathlib import Path
from tests.conftest import tiny, run_of
folder, cache = Path(sys.argv[1]), Path(sys.argv[2])
for kb in map(int, sys.argv[3:]):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kb}k", "tmpfs", folder], check=True)
    try:
        run_of(tiny(folder, cache) | {"state-dir": ""}, {"checkpoint_every": 1})
    except Exception as error:
        pass
    run = folder / "run"
    [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    summary = json.loads((run / "summary.json").read_text())
    whole = (run / "checkpoints/round-0002/manifest.json").exists() and (run / "pipeline/model_index.json").exists()
    print(kb, summary["status"], whole, summary.get("error", ""), flush=True)
    subprocess.run(["umount", "-l", folder], check=True)
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_at_any_point_ends_the_run_as_failed_with_the_reason(tmp_path, cache_dir):
    sizes = [str(kb) for kb in (150, 400, 600, 900)]
    command = [
        "unshare",
        "--map-root-user",
        "--mount",
        sys.executable,
        "-c",
        FULL_DISKS,
        str(tmp_path),
        str(cache_dir),
        *sizes,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    if any(text in done.stderr for text in ("Operation not permitted", "Permission denied", "unshare failed")):
        pytest.skip("file systems cannot be mounted here")
    ends = [line.split(" ", 3) for line in done.stdout.splitlines() if line.split(" ")[0] in sizes]
    assert len(ends) == len(sizes), done.stdout + done.stderr
    failed = [status == "failed" and "cannot be written (" in error for _, status, _, error in ends]
    assert failed[:3] == [True] * 3, ends
    # with the most room it depends on the time of the checkpoints in the background whether all required files fit
    assert failed[3] or ends[3][1:3] == ["completed", "True"], ends
