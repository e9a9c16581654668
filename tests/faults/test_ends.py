"""How a run may end, and what is true afterwards: its status, its files, and nothing left behind."""

import json
import multiprocessing
import os
import resource
import signal
import threading
from pathlib import Path

import pytest
from flwr.supercore.exit import exit_handler
from typer.testing import CliRunner

from fedddpm_app.cli import app
from fedddpm_app.config import ConfigError
from fedddpm_app.launch import simulation
from fedddpm_app.launch.flower_run import to_toml
from fedddpm_app.recording.checkpoints import Checkpoint
from fedddpm_app.recording.files import RecordingError
from fedddpm_app.recording.recorder import RunRecorder
from fedddpm_app.recording.status import read_status
from fedddpm_app.transport import shared
from tests.conftest import TINY, run_of
from tests.faults.conftest import lines_of

TRAIN = "fedddpm_app.client.worker.Worker.train"
SET_UP = "fedddpm_app.apps.server.Monitor"
FORK = multiprocessing.get_context("fork")

SIGNALS = {  # (the signals, the function in which they come, exit code, cause)
    "Ctrl-C twice": ([signal.SIGINT, signal.SIGINT], TRAIN, 130, "Ctrl-C"),
    "SIGHUP, then SIGTERM": ([signal.SIGHUP, signal.SIGTERM], TRAIN, 129, "SIGHUP"),
    "SIGTERM during set-up": ([signal.SIGTERM], SET_UP, 143, "SIGTERM"),
}


@pytest.fixture
def heeded():
    """Signals that the tests' process ignores, as under nohup, would stay ignored."""
    numbers = {number for numbers, *_ in SIGNALS.values() for number in numbers}
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def stop_with(numbers):
    def stopped(*_):
        for number in numbers:
            os.kill(os.getpid(), number)

    return stopped


def run_by_command(folder, cache_dir):
    """Run `fedddpm run` in this process; weights travel through ``memory``."""
    places = {"output-dir": str(folder), "run-name": "run", "algorithm": "fedavg", "cache-dir": str(cache_dir)}
    return CliRunner().invoke(app, ["run", "--engine", "inprocess", "-c", to_toml(TINY | places)])


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("end", SIGNALS)
def test_a_stop_signal_ends_a_run_in_this_process_in_order(tmp_path, cache_dir, memory, monkeypatch, end):
    numbers, where, code, cause = SIGNALS[end]
    monkeypatch.setattr(where, stop_with(numbers))
    done = run_by_command(tmp_path, cache_dir)
    assert (done.exit_code, list(memory.iterdir())) == (code, [])
    assert f"interrupted; run directory: {tmp_path / 'run'}" in done.output
    status = read_status(tmp_path / "run")
    assert (status.state, status.summary["stopped_by"], status.error) == ("interrupted", cause, "")
    assert lines_of(tmp_path / "run")
    assert not {"owner.lock", "reserve.bin"} & {path.name for path in (tmp_path / "run").iterdir()}


@pytest.mark.usefixtures("heeded")
def test_a_stop_on_a_full_disk_is_still_a_stop(tmp_path, cache_dir, memory, monkeypatch):
    def stopped(*_):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
        os.kill(os.getpid(), signal.SIGINT)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(TRAIN, stopped)
    try:
        done = run_by_command(tmp_path, cache_dir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (done.exit_code, type(done.exception)) == (130, simulation.Stopped)
    assert f"interrupted; run directory: {tmp_path / 'run'}" in done.output


def test_a_killed_process_is_found_out_by_whoever_looks(run_config, memory, monkeypatch):
    monkeypatch.setattr(TRAIN, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    process = FORK.Process(target=run_of, args=(run_config, {"algorithm": "fedavg"}))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    directory = Path(run_config["output-dir"]) / "run"
    assert json.loads((directory / "summary.json").read_text())["status"] == "running"
    assert list(memory.iterdir())
    status = read_status(directory)
    assert status.state == "failed"
    assert f"ended without a message (killed, or out of memory?): pid {process.pid} on" in status.error
    assert json.loads((directory / "summary.json").read_text())["status"] == "failed"
    assert lines_of(directory)
    shared.SharedDirectory.create().close()  # of the next run
    assert not list(memory.iterdir())


@pytest.mark.parametrize("where", [TRAIN, SET_UP])
def test_a_signal_that_flower_takes_ends_the_run_from_another_thread(run_config, memory, monkeypatch, where):
    """As in a simulation, whose ServerApp is in a thread; the run goes on for the seconds that Flower leaves it."""
    monkeypatch.setattr(exit_handler, "registered_exit_handlers", handlers := [])
    monkeypatch.setattr("fedddpm_app.federation.flower_internals.registered_exit_handlers", ["of Flower"])
    monkeypatch.setattr("fedddpm_app.federation.flower_internals._after_main_thread", lambda *_: None)

    def stopped(*_):
        assert handlers
        signalled = threading.Thread(target=exit_handler.trigger_exit_handlers, kwargs={"run_before_force_exit": True})
        signalled.start()
        signalled.join()
        assert not list(memory.iterdir())
        raise RuntimeError("the clients are gone")

    monkeypatch.setattr(where, stopped)
    with pytest.raises(RuntimeError):
        run_of(run_config, {"algorithm": "fedavg", "num_rounds": 1, "transport": "auto", "max-round-retries": 0})
    status = read_status(Path(run_config["output-dir"]) / "run")
    assert (status.state, status.error) == ("interrupted", "")
    assert "flwr stop" in status.summary["stopped_by"]


def test_an_error_before_the_first_round_is_the_reason_and_another_runs_folder_stays_as_it_is(run_config, monkeypatch):
    monkeypatch.setattr("fedddpm_app.apps.server.Monitor", lambda *_: 1 / 0)
    for _ in range(2):
        with pytest.raises((ZeroDivisionError, ConfigError), match=r"division by zero|holds a run already"):
            run_of(run_config, {"algorithm": "fedavg"})
    status = read_status(Path(run_config["output-dir"]) / "run")
    assert (status.state, status.error) == ("failed", "division by zero")


def test_an_error_after_the_start_of_a_resumed_run_is_its_reason(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "stats.jsonl").write_text('{"round": 1}\n')
    checkpoint = Checkpoint(1, {}, {}, {"num_stats": 3})
    with pytest.raises(RecordingError, match="fewer than 3 complete lines"):
        RunRecorder.resume(directory, checkpoint)
    status = read_status(directory)
    assert (status.state, "fewer than 3 complete lines" in status.error) == ("failed", True)
