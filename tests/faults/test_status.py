"""The status of a run: what its summary says, and what is true."""

import json
import os
from datetime import UTC, datetime, timedelta

import pytest

from fedddpm_app.recording.status import StatusFile, mark_interrupted, read_status

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
