"""A run directory through the lines of a log: what `fedddpm fetch` sends for and puts together."""

import base64
import json

import pytest
from typer.testing import CliRunner

from fedddpm_app.cli import app
from fedddpm_app.cli.fetch import _read_log, find_directory
from fedddpm_app.disk.private import make_private
from fedddpm_app.launch import delivery
from fedddpm_app.launch.delivered_names import NameRefusedError, check_name
from fedddpm_app.launch.delivery import MARK, REPORT, check_directory, lines_of, send
from fedddpm_app.launch.flower_run import COMPLETED, FlowerRun
from fedddpm_app.launch.receiver import FetchError, FileReceiver
from fedddpm_app.recording import layout
from tests.conftest import ROOT
from tests.faults.mutations import at_most

runner = CliRunner()


@pytest.fixture
def directory(tmp_path):
    folder = tmp_path / "results" / "run-a"
    (folder / "samples").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"run_id": "12"}))
    (folder / "summary.json").write_text(json.dumps({"status": "completed"}))
    (folder / "samples" / "round.png").write_bytes(bytes(range(256)) * 2000)
    (folder / "empty").touch()
    return folder


def deliver(lines, to):
    receiver = FileReceiver(to.with_name("incoming"))
    for line in lines:
        receiver.take(line)
    if receiver.is_complete:
        make_private(to)
        receiver.move_to(to)
    return receiver


def test_what_is_sent_is_what_was_there(directory, tmp_path):
    lines = list(lines_of(directory, 1.0, 10.0, 100))
    receiver = deliver(["something else", *lines, "and more"], tmp_path / "here")
    assert receiver.is_complete
    assert not receiver.left
    for path in directory.rglob("*"):
        assert path.is_dir() or (tmp_path / "here" / path.relative_to(directory)).read_bytes() == path.read_bytes()
    assert len(list((tmp_path / "here").rglob("*"))) == len(list(directory.rglob("*")))
    assert max(map(len, lines)) < 200_000


def test_the_program_that_is_sent_knows_the_names_in_a_run_directory():
    of_this_host = {layout.SCRATCH, layout.UNFINISHED, layout.CLIENT_STATE, layout.TRACKING}
    assert set(delivery.WORKING_FOLDERS) == of_this_host
    assert (delivery.LOG, delivery.REPORT) == (layout.LOG, layout.REPORT)


def test_lines_are_written_no_faster_than_they_are_taken(capsys):
    pauses = []
    send(["x" * 1_000_000] * 10, pauses.append)
    assert len(capsys.readouterr().out) == 10_000_010
    assert len(pauses) == 3
    assert pauses[-1] > 3.0  # for what was written last


def test_large_files_are_named_and_left(directory, tmp_path):
    receiver = deliver(lines_of(directory, 0.1, 10.0, 100), tmp_path / "here")
    assert receiver.left == {"samples/round.png": (512_000, "size")}
    assert receiver.is_complete
    assert not (tmp_path / "here" / "samples").exists()


def test_only_the_directory_of_the_run_is_sent(directory, tmp_path):
    check_directory(directory, "12")
    with pytest.raises(ValueError, match="of the run 12, not 13"):
        check_directory(directory, "13")
    (directory / "config.json").write_text(json.dumps({"run_id": "12", "resumed": [{"run_id": "13"}]}))
    check_directory(directory, "13")
    with pytest.raises(ValueError, match="is not a run directory"):
        check_directory(tmp_path, "12")


@pytest.mark.parametrize(
    "name", ["../../evil", "/etc/evil", "a/../../evil", "", "evil.py", "pyproject.toml", "a/b.SO", "a.HTML", "a.svg"]
)
def test_a_server_cannot_write_elsewhere(tmp_path, name):
    with pytest.raises(FetchError, match="which is refused"):
        deliver([f"{MARK} file {json.dumps({'path': name, 'bytes': 1})}"], tmp_path)


@pytest.mark.parametrize("there", ["/results/runs/..", "/results/runs/", "/results/.ssh", "/"])
def test_a_server_cannot_choose_the_folder(there, flower_home, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(FlowerRun, "log", lambda self: iter([f"[fedddpm] run directory: {there}"]))
    monkeypatch.setattr(FlowerRun, "status", lambda self: COMPLETED)
    done = runner.invoke(app, ["fetch", "12"])
    assert done.exit_code == 1
    assert not list((tmp_path / "here").iterdir())


def test_what_comes_damaged_is_not_kept(directory, tmp_path):
    lines = list(lines_of(directory, 1.0, 10.0, 100))
    place = next(k for k, line in enumerate(lines) if " data " in line)
    other = base64.b64encode(b'{"run_id": "13"}').decode()
    flipped = [*lines[:place], f"{MARK} data {other}", *lines[place + 1 :]]
    with pytest.raises(FetchError, match="did not arrive as it was sent"):
        deliver(flipped, tmp_path / "here")
    assert not (tmp_path / "here").exists()
    assert not deliver(lines[:-1], tmp_path / "other" / "there").is_complete
    with pytest.raises(FetchError, match="cannot be read"):
        deliver([f"{MARK} data ~~~"], tmp_path / "here")


def test_the_directory_is_the_last_that_the_log_names():
    log = ["[fedddpm] run directory: /results/runs/a", "[fedddpm] run directory: /results/runs/a b", "end"]
    assert find_directory(log) == "/results/runs/a b"
    with pytest.raises(FetchError, match="has no run directory"):
        find_directory(["nothing"])


def test_a_client_does_not_choose_what_is_fetched():
    ours = "[fedddpm] run directory: /results/runs/a"
    for reason in ("run directory: /elsewhere", "[fedddpm] run directory: /elsewhere"):
        log = [ours, f"WARNING: round 1: client 3 is left out: {reason}", f"INFO :      {reason}"]
        assert find_directory(log) == "/results/runs/a"


def test_a_text_is_no_file(tmp_path):
    line = f"{MARK} file {json.dumps({'path': 'summary.json', 'bytes': 1})}"
    assert deliver([f"WARNING: round 1: client 3 is left out: {line}"], tmp_path).num_bytes == 0
    assert not list(tmp_path.iterdir())


@pytest.fixture
def flower_home(tmp_path, monkeypatch):
    """Flower's config with the connection `lab`."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    (tmp_path / "flwr").mkdir()
    (tmp_path / "flwr" / "config.toml").write_text('[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "x:1"\n')


def test_a_connection_that_flower_does_not_know_is_refused(flower_home, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for command in (["run", "--app", str(ROOT)], ["fetch", "12"]):
        done = runner.invoke(app, [*command, "--superlink", "labb"])
        assert done.exit_code in (1, 2)
        assert "has no [superlink.labb], only lab" in " ".join(done.output.split())
    assert not list((tmp_path / "here").iterdir())


def test_fetch_makes_the_runs_folder(flower_home, directory, tmp_path, monkeypatch):
    monkeypatch.setattr(FlowerRun, "log", lambda self: iter([f"[fedddpm] run directory: {directory}"]))
    monkeypatch.setattr(FlowerRun, "lines", lambda self: lines_of(directory, 1.0, 10.0, 100))
    monkeypatch.setattr(FlowerRun, "status", lambda self: COMPLETED)
    again = ["fetch", "12", "--superlink", "lab", "--out", str(tmp_path / "out")]
    done = runner.invoke(app, again)
    assert done.exit_code == 0, done.output
    assert "run-a: completed" in done.output
    assert (tmp_path / "out" / "run-a" / "log.txt").read_text() == f"[fedddpm] run directory: {directory}\n"
    (tmp_path / "out" / "run-a" / "summary.json").unlink()  # as after a delivery that broke off
    assert "run-a: completed" in runner.invoke(app, again).output
    (directory / "summary.json").unlink()
    (tmp_path / "out" / "run-a" / "summary.json").unlink()
    assert "the run has not ended; Flower reports finished:completed" in runner.invoke(app, again).output
    (tmp_path / "out" / "run-a" / "summary.json").unlink(missing_ok=True)
    ours = {"run_id": "11", "resumed": [{"run_id": "12"}]}  # it was resumed
    (tmp_path / "out" / "run-a" / "config.json").write_text(json.dumps(ours))
    assert "the run has not ended" in runner.invoke(app, again).output
    (tmp_path / "out" / "run-a" / "config.json").write_text(json.dumps({"run_id": "11", "resumed": 12}))
    assert "holds a run already" in runner.invoke(app, again).output
    (tmp_path / "out" / "run-a" / "config.json").unlink()
    assert "holds something else" in runner.invoke(app, again).output
    monkeypatch.setattr(FlowerRun, "lines", lambda self: iter(["OSError: no such file"]))
    failed = runner.invoke(app, [*again[:-1], str(tmp_path / "other")])
    assert failed.exit_code == 1
    assert "did not all arrive" in failed.output
    assert "OSError: no such file" in failed.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-c", 'output-dir="/abs"'], 'output-dir = "/abs" is a path of this machine'),
        (["--engine", "inprocess"], "leave --engine and --federation-config out"),
        (["--federation-config", "num-supernodes=2"], "leave --engine and --federation-config out"),
        (["-c", "num-rounds=0"], "num-rounds = 0"),
    ],
)
def test_what_cannot_be_deployed_is_refused_before_anything_is_made(tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    done = runner.invoke(app, ["run", "--app", str(ROOT), "--superlink", "lab", *arguments])
    assert done.exit_code == 2
    assert says in " ".join(done.output.split())
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_says_how_to_go_on(flower_home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def lines(self):
        self.run_id = "77"
        yield "[fedddpm] run directory: /results/runs/x"
        raise SystemExit(130)

    monkeypatch.setattr(FlowerRun, "lines", lines)
    monkeypatch.setattr("fedddpm_app.cli.deployed.check_reachable", lambda name: None)
    done = runner.invoke(app, ["run", "--app", str(ROOT), "--superlink", "lab", "-c", 'run-name="x"'])
    assert done.exit_code == 130
    for command in ("flwr log 77 lab", "flwr stop 77 lab", "fedddpm fetch 77 --superlink lab"):
        assert command in done.output
    assert (tmp_path / "runs" / "x" / "log.txt").exists()
    assert not (tmp_path / "runs" / "x" / "summary.json").exists()


@pytest.mark.parametrize("line", ["", "ab"])
def test_a_log_of_short_lines_takes_no_more_memory_than_one_of_long_lines(monkeypatch, line):
    monkeypatch.setattr("fedddpm_app.limits.LOG_CHARACTERS", 10**6)
    run = FlowerRun.of("1", "")
    monkeypatch.setattr(run, "log", lambda: (line for _ in range(10**6)))
    with at_most(4 * 10**6), pytest.raises(FetchError, match="a log of more than"):
        _read_log(run)


def test_a_page_stays_on_its_host(directory, tmp_path):
    (directory / REPORT).write_text("<script>alert(1)</script>")
    assert not any('"report.html"' in line for line in lines_of(directory, 1.0, 10.0, 100))
    with pytest.raises(NameRefusedError, match="could be run as code"):
        check_name(f"samples/{REPORT}")
