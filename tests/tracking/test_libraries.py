"""Each library for real, offline: its files read back equal ``stats.jsonl``.

A library is used in a child process: some can write to one folder in a process only.
"""

import os
import signal
import socket
import time
import traceback
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedddpm_app.config import load_config
from fedddpm_app.config.tracking import TRACKERS
from fedddpm_app.recording.files import append_line, keep_lines, read_lines
from fedddpm_app.tracking import points_of_line, points_of_summary, start_tracking
from tests.conftest import RunDirectory, run_of
from tests.tracking.readers import read

pytestmark = pytest.mark.slow
LINES = [
    {"phase": "data", "data/num_examples": [3, 4], "data/num_unassigned": 0, "mem/peak_rss_mb": 9.5},
    {"phase": "pretrain", "round": 0, "pretrain/client_loss": {"0": 0.5}, "comm/up_mb": 1 / 3},
    {"phase": "initial", "round": 0, "eval/loss": 0.1},
    {"phase": "round", "round": 1, "eval/loss": 0.1 + 0.2, "train/loss": None, "cloud/merged": True, "comm/up_mb": 0.0},
    {"phase": "abandoned", "round": 2, "attempt": 1, "comm/up_mb": 0.1, "reason": "few replies"},
    {"phase": "round", "round": 2, "eval/loss": 1e30, "eval/metrics": [{"name": "fid", "value": 2.5, "n": 10}]},
]
SUMMARY = {"status": "completed", "eval/loss": 0.25, "metrics": [{"name": "fid", "value": 1.5, "floor": 0.5}]}


@pytest.fixture(
    params=[name if name == "tensorboard" else pytest.param(name, marks=pytest.mark.long) for name in TRACKERS]
)
def library(request):
    if find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed: `make trackers` runs the tests of all libraries")
    return request.param


@pytest.fixture(autouse=True)
def own_settings(monkeypatch):
    """None of the user's settings of a library counts."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_"))]:
        monkeypatch.delenv(name)


def in_child(work):
    """Run a function in a child process; return its exit code, or the negative number of its signal."""
    child = os.fork()
    if child == 0:
        try:
            os.umask(0o077)
            work()
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def expected(library, lines, summary):
    """All points of a run; TensorBoard's are the nearest float32."""
    found, last = defaultdict(list), 0
    for line in lines:
        last, values = points_of_line(line)
        for name, value in values.items():
            found[name].append((last, value))
    for name, value in points_of_summary(summary).items():
        found[name].append((last, value))
    if library == "tensorboard":
        return {name: [(place, float(np.float32(value))) for place, value in each] for name, each in found.items()}
    return dict(found)


@pytest.fixture
def start(tmp_path, run_config, library):
    """Start the tracking of a run in ``tmp_path``, after some lines that it keeps."""
    settings = run_config | {"tracker": library, "dataset": "path:/home/me/secret"}
    return lambda kept=(): start_tracking(load_config(settings), settings, tmp_path, kept)


@pytest.fixture
def sheet(tmp_path):
    def make(server_round):
        path = tmp_path / "samples" / f"round-{server_round:04d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
        return path

    return make


def test_the_files_of_a_resumed_run_read_back_equal_the_lines(library, start, sheet, tmp_path):
    """The first process dies after a line and a picture that the resumed run does not keep, and repeats."""
    stats = tmp_path / "stats.jsonl"

    def first():
        sink = start()
        for line in LINES:
            if line["phase"] == "round":
                sink.picture(sheet(line["round"]), "samples/model", server_round=line["round"])
            append_line(stats, line)
            sink.line(line)
        sink.end({"status": "failed"}, 60)

    def second():
        sink = start(keep_lines(stats, 4))
        for line in LINES[4:]:
            if line["phase"] == "round":
                sink.picture(sheet(line["round"]), "samples/model", server_round=line["round"])
            append_line(stats, line)
            sink.line(line)
        sink.end(SUMMARY, 60)

    assert [in_child(first), in_child(second)] == [0, 0]
    points, pictures, status = read(library, tmp_path)
    assert points == expected(library, read_lines(stats), SUMMARY)
    assert len(points["eval/loss"]) == 3
    assert "train/loss" not in points
    assert pictures == {"samples/model": [1, 2]}
    assert status == ["completed"]


def test_nothing_leaves_the_machine_and_only_its_user_can_read_the_files(library, start, sheet, tmp_path, monkeypatch):
    """Python's connections are listed; programs that a library starts would go through the proxy."""
    listed = tmp_path / "connections"
    connect = socket.socket.connect
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
            monkeypatch.setenv(name.lower(), os.environ[name])

        def noted(self, address):
            if self.family != socket.AF_UNIX and address[0] != "127.0.0.1":
                with listed.open("a") as file:
                    file.write(f"{address}\n")
            return connect(self, address)

        def work():
            socket.socket.connect = noted
            sink = start()
            sink.line(LINES[3])
            sink.picture(sheet(1), "samples/model", server_round=1)
            sink.end(SUMMARY, 60)

        assert in_child(work) == 0
        proxy.settimeout(0)
        with pytest.raises(BlockingIOError):
            proxy.accept()
    assert not listed.exists()
    for path in (tmp_path / "tracking").rglob("*"):
        mode = path.lstat().st_mode & 0o777
        assert path.is_symlink() or mode == (0o700 if path.is_dir() else 0o600), f"{path} {mode:o}"
    assert all(b"/home/me" not in path.read_bytes() for path in (tmp_path / "tracking").rglob("*") if path.is_file())


def test_the_lines_are_on_the_disk_while_the_run_goes_on_and_when_it_is_killed(library, start, tmp_path):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        sink = start()
        for line in LINES:
            sink.line(line)
        sink._jobs.put(lambda tracker: os.write(writing, b"stored"))
        signal.pause()
    os.close(writing)
    try:
        assert os.read(reading, 6) == b"stored"
        wanted, deadline = expected(library, LINES, {"status": "running"}), time.monotonic() + 10
        while read(library, tmp_path)[0] != wanted and time.monotonic() < deadline:
            time.sleep(0.05)  # W&B flushes ten times a second
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    points, _, status = read(library, tmp_path)
    assert points == wanted
    assert status == []


def test_a_run_of_the_app_that_gets_another_round_reads_back(library, run_config):
    """All lines of FedDDPM with metrics, as its clients and its server write them."""
    settings = {"tracker": library, "eval-images": 20, "eval-final-images": 30, "num-rounds": 1}
    settings |= {"num-clients": 2, "eval-extractor": "pixels-pca"}
    path = Path(run_config["output-dir"]) / run_config["run-name"]
    for more in ({}, {"num-rounds": 2, "resume": str(path)}):
        assert in_child(lambda more=more: run_of(run_config, settings | more)) == 0
    run = RunDirectory(path)
    points, pictures, status = read(library, run.path)
    assert points == expected(library, run.stats, run.summary)
    assert {"eval/loss", "eval/fd-pixels-pca", "pretrain/comm/up_mb", "summary/memorized-share"} <= points.keys()
    assert (pictures, status) == ({"samples/model": [1, 2]}, ["completed"])
