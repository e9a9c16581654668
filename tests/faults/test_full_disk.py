"""Disks that fill up: complete lines, a last summary, and the reason."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from fedddpm_app.recording.files import RecordingError, append_line
from fedddpm_app.recording.status import read_status
from fedddpm_app.recording.status_file import StatusFile
from tests.faults.conftest import lines_of


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
    print(kb, summary["status"], summary.get("error", ""), flush=True)
    subprocess.run(["umount", "-l", folder], check=True)
"""


@pytest.mark.slow
def test_a_disk_that_fills_up_at_any_point_ends_the_run_as_failed_with_the_reason(tmp_path, cache_dir):
    sizes = [str(kb) for kb in (150, 400, 600, 900)]
    command = ["unshare", "-m", sys.executable, "-c", FULL_DISKS, str(tmp_path), str(cache_dir), *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    if "Operation not permitted" in done.stderr:
        pytest.skip("file systems cannot be mounted here")
    ends = [line.split(maxsplit=2) for line in done.stdout.splitlines() if line.split(" ")[0] in sizes]
    assert len(ends) == len(sizes), done.stdout + done.stderr
    assert all(status == "failed" and "cannot be written (" in error for _, status, error in ends), ends
