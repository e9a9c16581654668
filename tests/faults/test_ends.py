"""How a run may end, and what is true afterwards: its status, its files, and nothing left behind."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from flwr.supercore.exit import exit_handler
from typer.testing import CliRunner

from fedddpm_app.cli import app
from fedddpm_app.client.worker import Worker
from fedddpm_app.config import ConfigError
from fedddpm_app.launch import guardian, homes, simulation
from fedddpm_app.launch.flower_run import CONFIG_PREFIX, to_toml
from fedddpm_app.launch.leftovers import find_left_overs
from fedddpm_app.launch.simulation import SimulationRun
from fedddpm_app.owned import OwnedFolder
from fedddpm_app.recording.files import RecordingError, append_line
from fedddpm_app.recording.status import StatusFile, mark_interrupted, now, read_status
from fedddpm_app.transport import shared
from tests.conftest import ROOT, TINY, run_of

TRAIN = "fedddpm_app.client.worker.Worker.train"
FORK = multiprocessing.get_context("fork")
DEAD = {"pid": 2**22 + 1, "started": 1.0}


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """A folder in place of memory-backed storage."""
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(shared, "ROOT", folder)
    for module in ("homes", "leftovers"):
        monkeypatch.setattr(f"fedddpm_app.launch.{module}.SHARED_MEMORY", folder)
    return folder


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A folder in place of /tmp."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def lines_of(directory):
    """The lines of stats.jsonl, all complete."""
    text = (directory / "stats.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


# ---- signals: (end, exit code, status, cause) -----------------------------------------------------

SIGNALS = {
    "Ctrl-C": ([signal.SIGINT], 130, "Ctrl-C"),
    "Ctrl-C twice": ([signal.SIGINT, signal.SIGINT], 130, "Ctrl-C"),
    "SIGTERM": ([signal.SIGTERM], 143, "SIGTERM"),
    "SIGHUP, then SIGTERM": ([signal.SIGHUP, signal.SIGTERM], 129, "SIGHUP"),
}


@pytest.fixture
def heeded():
    """Signals that the tests' process ignores, as under nohup, would stay ignored."""
    numbers = {number for numbers, _, _ in SIGNALS.values() for number in numbers}
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("end", SIGNALS)
def test_a_stop_signal_ends_a_run_in_this_process_in_order(tmp_path, cache_dir, memory, monkeypatch, end):
    numbers, code, cause = SIGNALS[end]

    def stopped(*_):
        assert len(list(memory.iterdir())) == 1
        for number in numbers:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(TRAIN, stopped)
    places = {"output-dir": str(tmp_path), "run-name": "run", "algorithm": "fedavg", "cache-dir": str(cache_dir)}
    done = CliRunner().invoke(app, ["run", "--engine", "inprocess", "-c", to_toml(TINY | places)])
    assert (done.exit_code, list(memory.iterdir())) == (code, [])
    assert f"interrupted; run directory: {tmp_path / 'run'}" in done.output
    status = read_status(tmp_path / "run")
    assert (status.state, status.summary["stopped_by"], status.error) == ("interrupted", cause, "")
    assert lines_of(tmp_path / "run")
    assert not {"owner.lock", "reserve.bin"} & {path.name for path in (tmp_path / "run").iterdir()}


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
    assert f"ended without a word (killed, or out of memory?): pid {process.pid} on" in status.error
    assert json.loads((directory / "summary.json").read_text())["status"] == "failed"
    assert lines_of(directory)
    shared.SharedDirectory.create().close()  # of the next run
    assert not list(memory.iterdir())


def test_a_signal_that_flower_takes_ends_the_run_from_another_thread(run_config, memory, monkeypatch):
    """As in a simulation, whose ServerApp is in a thread; the run goes on for the seconds that Flower leaves it."""
    monkeypatch.setattr(exit_handler, "registered_exit_handlers", handlers := [])
    monkeypatch.setattr("fedddpm_app.federation.flower_internals.registered_exit_handlers", ["of Flower"])
    monkeypatch.setattr("fedddpm_app.federation.flower_internals._after_main_thread", lambda *_: None)
    train = Worker.train

    def stopped(*arguments):
        if handlers:
            signalled = threading.Thread(
                target=exit_handler.trigger_exit_handlers, kwargs={"run_before_force_exit": True}
            )
            signalled.start()
            signalled.join()
            assert not list(memory.iterdir())
        return train(*arguments)

    monkeypatch.setattr(TRAIN, stopped)
    run = run_of(run_config, {"algorithm": "fedavg", "num_rounds": 1, "transport": "auto"})
    assert run.summary["status"] == "interrupted"
    assert "flwr stop" in run.summary["stopped_by"]


def test_an_error_before_the_first_round_is_the_reason_and_another_runs_folder_stays_as_it_is(run_config, monkeypatch):
    monkeypatch.setattr("fedddpm_app.apps.server.Monitor", lambda *_: 1 / 0)
    for _ in range(2):
        with pytest.raises((ZeroDivisionError, ConfigError), match=r"division by zero|holds a run already"):
            run_of(run_config, {"algorithm": "fedavg"})
    status = read_status(Path(run_config["output-dir"]) / "run")
    assert (status.state, status.error) == ("failed", "division by zero")


# ---- the status: (what the summary says, what is true) --------------------------------------------

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


# ---- full disks -----------------------------------------------------------------------------------


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


# ---- left-overs -----------------------------------------------------------------------------------


def abandon(folder):
    """Leave a folder as a killed process does: its lock is free."""
    folder._lock.release()
    return folder.path


def test_what_certainly_dead_owners_left_is_found_and_nothing_else(tmp_path, temporary, memory):
    kept = [OwnedFolder.create(prefix, parent) for prefix, parent in ((CONFIG_PREFIX, None), ("fedddpm-", memory))]
    dead = {abandon(OwnedFolder.create(CONFIG_PREFIX)), abandon(OwnedFolder.create("fedddpm-", memory))}
    dead.add(abandon(OwnedFolder.create(homes.PREFIX)))
    (temporary / f"{CONFIG_PREFIX}my-notes").mkdir()  # a user's own
    (temporary / f"{CONFIG_PREFIX}12345678").mkdir()  # without a lock: of an older version, or not ours
    assert {item.path for item in find_left_overs()} == dead
    assert all(item.remove() for item in find_left_overs())
    assert not any(path.exists() for path in dead)
    assert all(folder.path.exists() for folder in kept)
    for folder in kept:
        folder.close()


def a_run(parent, name, state, run_id):
    directory = parent / name
    (directory / "scratch").mkdir(parents=True)
    (directory / "scratch" / "client-0.safetensors").write_bytes(bytes(10))
    (directory / "config.json").write_text(
        json.dumps({"run_id": str(run_id), "run_config": {"state-dir": str(parent / "state")}})
    )
    (directory / "summary.json").write_text(json.dumps({"status": state, "ended": now()}))
    (parent / "state" / f"run-{run_id}").mkdir(parents=True)
    return directory


def test_clean_shows_asks_and_keeps_what_a_resumed_run_needs(tmp_path, temporary, memory):
    parent, runner = tmp_path / "runs", CliRunner()
    done, stopped, alive = (a_run(parent, *run) for run in (("a", "completed", 1), ("b", "failed", 2), ("c", "", 3)))
    server = StatusFile(alive)
    server.begin()
    shown = runner.invoke(app, ["clean", str(parent)], input="n\n")
    assert "kept, because the run can be resumed" in shown.output
    assert (done / "scratch").exists()
    assert "removed 2 of 2" in runner.invoke(app, ["clean", str(parent), "--yes"]).output
    left = [directory.name for directory in (done, stopped, alive) if (directory / "scratch").exists()]
    assert left == ["b", "c"]
    assert sorted(path.name for path in (parent / "state").iterdir()) == ["run-2", "run-3"]
    runner.invoke(app, ["clean", str(parent), "--yes", "--resumable"])
    assert not (stopped / "scratch").exists()
    assert (stopped / "summary.json").exists()
    assert (alive / "scratch").exists()
    server.end({"status": "completed"})
    assert "--headless" in runner.invoke(app, ["clean", "--help"]).output


# ---- processes ------------------------------------------------------------------------------------


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


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("number", "state", "reason"),
    [
        (signal.SIGKILL, "failed", "without a word"),
        pytest.param(signal.SIGTERM, "interrupted", "flwr stop", marks=pytest.mark.long),
    ],
)
def test_a_server_that_ends_early_ends_the_command(tmp_path, simulation_under_way, number, state, reason):
    command, server, started = simulation_under_way(**{"local-steps": 100_000})
    server.send_signal(number)
    output = command.stdout.read()
    assert command.wait(60) == 1
    status = read_status(tmp_path / "run")
    assert (status.state, reason in f"{status.error}{status.summary.get('stopped_by')}") == (state, True)
    assert reason in output
    assert f"run directory: {tmp_path / 'run'}" in output
    until(lambda: not living(started), 10)
