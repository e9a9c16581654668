"""Processes of a simulation whose command or server is killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from fedddpm_app.cli import app
from fedddpm_app.launch import guardian, homes, simulation
from fedddpm_app.launch.flower_run import to_toml
from fedddpm_app.launch.leftovers import find_left_overs
from fedddpm_app.launch.simulation import SimulationRun
from fedddpm_app.recording.status import now, read_status
from fedddpm_app.recording.status_file import StatusFile
from tests.conftest import ROOT, TINY
from tests.faults.conftest import abandon


def start(home, *words):
    """A process of a Flower home."""
    command = [sys.executable, "-c", "import time; time.sleep(600)", *words]
    return subprocess.Popen(command, env={**os.environ, "FLWR_HOME": str(home)})


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_home_of_a_killed_command_ends_with_its_run_and_not_before(tmp_path, temporary, memory):
    server_status = StatusFile(tmp_path)
    server_status.begin()
    folder = homes.create_home(tmp_path)
    superlink, server = start(folder.path, "flower-superlink"), start(folder.path, "flwr-simulation")
    guard = threading.Thread(target=guardian.guard, args=(folder.path, 0.02))
    guard.start()
    time.sleep(0.1)
    assert folder.path.exists()
    home = abandon(folder)  # the command is killed
    time.sleep(0.5)
    assert homes.headless_homes() == [home]
    assert find_left_overs() == []
    assert (server.poll(), superlink.poll()) == (None, None)
    server.kill()  # the end of the run
    server.wait()
    guard.join(20)
    assert not home.exists()
    superlink.wait(5)


@pytest.mark.slow
def test_clean_stops_a_run_without_its_command_only_when_asked(tmp_path, temporary, memory):
    home = abandon(homes.create_home(tmp_path / "run"))
    server = start(home, "flwr-simulation")
    answer = CliRunner().invoke(app, ["clean", str(tmp_path), "--yes"]).output.replace("\n", "")
    assert f"the run {tmp_path / 'run'} goes on, although its command was killed" in answer
    assert server.poll() is None
    CliRunner().invoke(app, ["clean", str(tmp_path), "--yes", "--headless"])
    server.wait(5)
    assert not home.exists()
    assert read_status(tmp_path / "run").summary["stopped_by"] == "fedddpm clean"


def test_a_command_follows_the_end_of_its_server_and_not_flower(tmp_path, temporary, monkeypatch):
    """Flower does not end, because an actor hangs, or because it does not know yet that the server was killed."""
    monkeypatch.setattr(simulation, "_WATCH_SECONDS", 0.02)
    monkeypatch.setattr(simulation, "_LAST_LINES_SECONDS", 0.1)
    flower = tmp_path / "flwr"
    flower.write_text(f"#!{sys.executable}\nimport time\nprint('a line', flush=True)\ntime.sleep(60)\n")
    flower.chmod(0o755)
    directory = tmp_path / "run"
    directory.mkdir()
    with SimulationRun(tmp_path, {"output-dir": str(tmp_path), "run-name": "run"}, {}) as run:
        run._flwr = str(flower)
        lines = run.lines()
        assert next(lines) == "a line"
        (directory / "summary.json").write_text(json.dumps({"status": "completed", "ended": now()}))
        assert list(lines) == []
        home = run._home.path
        guard = psutil.Process(run._guardian.pid)
    assert run.was_left
    assert not home.exists()
    assert not guard.is_running()


# ---- with Ray: (end of which process, exit code, status) -------------------------------------------


def processes_with(name, value):
    """Processes with a variable in their environment, and their children."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(name) == value:
                found |= {process, *process.children(recursive=True)}
        except psutil.Error:
            continue
    return found


def living(processes):
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture
def simulation_under_way(tmp_path, cache_dir):
    """A simulation whose clients train: its command, its home, and what it started."""

    def begin(**settings):
        places = {"output-dir": str(tmp_path), "run-name": "run", "cache-dir": str(cache_dir), "node-timeout": 150.0}
        keys = TINY | places | {"algorithm": "fedavg", "num-clients": 2} | settings
        arguments = [sys.executable, "-m", "fedddpm_app.cli", "run", "--app", str(ROOT), "-c", to_toml(keys)]
        mark = {"FEDDDPM_TEST_FOLDER": str(tmp_path)}
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process, printed = subprocess.Popen(arguments, env=os.environ | mark, **pipe), []
        assert any(printed.append(line) or " train " in line for line in process.stdout), "".join(printed)
        started = processes_with("FEDDDPM_TEST_FOLDER", str(tmp_path))
        server = next(each for each in started if any("flwr-simulation" in word for word in each.cmdline()))
        return process, server, started

    yield begin
    for each in living(processes_with("FEDDDPM_TEST_FOLDER", str(tmp_path))):
        each.kill()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_simulation_whose_command_is_killed_goes_on_and_nothing_stays(tmp_path, simulation_under_way):
    command, server, started = simulation_under_way(**{"local-steps": 400})
    home = Path(server.environ()["FLWR_HOME"])
    command.kill()
    until(lambda: not home.exists(), 150)
    assert read_status(tmp_path / "run").state == "completed"
    until(lambda: not living(started), 10)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("number", "state", "reason"),
    [
        (signal.SIGKILL, "failed", "without a message"),
        (signal.SIGTERM, "interrupted", "flwr stop"),
    ],
)
def test_a_server_that_ends_early_ends_the_command(tmp_path, simulation_under_way, number, state, reason):
    command, server, started = simulation_under_way(**{"local-steps": 100_000})
    server.send_signal(number)
    output = command.stdout.read()
    assert command.wait(60) == 1
    status = read_status(tmp_path / "run")
    assert (status.state, reason in f"{status.error}{status.summary.get('stopped_by')}") == (state, True), status
    assert reason in output
    assert f"run directory: {tmp_path / 'run'}" in output
    until(lambda: not living(started), 10)
