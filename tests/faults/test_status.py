"""The status of a run: what its summary says, and what is true."""

import fcntl
import json
import os
import shutil
from datetime import UTC, datetime, timedelta

import pytest

from fedddpm_app.disk.owned import LOCK, OwnerLock
from fedddpm_app.recording.status import mark_interrupted, read_status
from fedddpm_app.recording.status_file import StatusFile

DEAD = {"pid": 2**22 + 1, "started": 1.0}

STATUSES = {
    "no summary": (None, "unknown"),
    "half a summary": ('{"status": "comp', "unknown"),
    "a run of another host": ({"status": "running", "owner": DEAD | {"host": "elsewhere"}}, "running"),
    "a dead owner": ({"status": "running", "owner": DEAD | {"host": os.uname().nodename}}, "failed"),
    "completed": ({"status": "completed"}, "completed"),
}


@pytest.mark.parametrize("case", STATUSES)
def test_a_status_is_read_as_it_is_true(tmp_path, case):
    content, state = STATUSES[case]
    if content is not None:
        (tmp_path / "summary.json").write_text(content if isinstance(content, str) else json.dumps(content))
    assert read_status(tmp_path).state == state


WHERE = {  # (whether the lock is held, whether the path differs, whether the host's name differs, what is true)
    "a live run": (True, False, False, "running"),
    "a live run, through a bind mount": (True, True, False, "running"),
    "a live run, between a container and its host": (True, True, True, "running"),
    "a dead run, through a bind mount": (False, True, False, "failed"),
    "a container that is gone": (False, True, True, "failed"),
}


@pytest.mark.parametrize("case", WHERE)
def test_the_lock_decides_from_wherever_one_looks(tmp_path, case):
    held, other_path, other_host, state = WHERE[case]
    directory, mounted = tmp_path / "run", tmp_path / "mounted"
    directory.mkdir()
    mounted.symlink_to(directory)
    server = StatusFile(directory)
    server.begin()
    summary = json.loads((directory / "summary.json").read_text())
    summary["owner"]["pid"] = DEAD["pid"]  # a process has another number in a container
    summary["owner"] |= {"host": "container"} if other_host else {}
    (directory / "summary.json").write_text(json.dumps(summary))
    if not held:
        server._lock.release()
    assert read_status(mounted if other_path else directory).state == state
    server._lock.release()


def test_a_lock_whose_owner_removed_its_file_in_between_is_not_taken(tmp_path, monkeypatch):
    lock, flock = OwnerLock(tmp_path / LOCK), fcntl.flock

    def late(*arguments):
        lock.path.unlink()
        flock(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", late)
        assert not lock.acquire()
    assert lock.acquire()
    lock.release()


def test_a_copy_of_a_live_run_is_not_corrected(tmp_path):
    (tmp_path / "run").mkdir()
    server = StatusFile(tmp_path / "run")
    server.begin()
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    assert read_status(tmp_path / "copy").state == "running"
    server.end({"status": "completed"})


def test_a_running_run_is_left_alone_and_its_first_end_counts(tmp_path):
    server = StatusFile(tmp_path)
    server.begin()
    assert read_status(tmp_path).state == "running"
    assert read_status(tmp_path).summary["owner"]["pid"] == os.getpid()
    server.end({"status": "failed", "error": "first"})
    server.end({"status": "completed"})
    status = read_status(tmp_path)
    assert (status.state, status.error) == ("failed", "first")
    assert 0 <= status.seconds_since_end < 60


@pytest.mark.parametrize(
    ("before", "age", "state", "error"),
    [(None, 0, "interrupted", ""), ("running", 0, "interrupted", ""), ("completed", -1, "completed", ""),
     ("failed", -1, "interrupted", "no client answered"), ("failed", 60, "failed", "no client answered")],
)  # fmt: skip
def test_a_stop_never_erases_the_error_of_a_run(tmp_path, before, age, state, error):
    """A run that failed before the stop stays failed; a run that failed by the stop is interrupted, with its error."""
    stop = datetime.now(UTC)
    if before:
        ended = (stop - timedelta(seconds=age)).isoformat()
        summary = {"status": before, "ended": ended} | ({"error": error} if error else {})
        (tmp_path / "summary.json").write_text(json.dumps(summary))
    mark_interrupted(tmp_path, "SIGTERM", stop)
    status = read_status(tmp_path)
    assert (status.state, status.error) == (state, error)
    assert status.summary.get("stopped_by") == ("SIGTERM" if state == "interrupted" else None)
