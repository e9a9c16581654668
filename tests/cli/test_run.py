import dataclasses
import itertools
import json
import re
import shlex
from io import StringIO

import pytest
from flwr.common.config import parse_config_args
from flwr.supercore.run import Run
from rich.console import Console
from typer.testing import CliRunner

from fedddpm_app.cli import app
from fedddpm_app.cli.common import read_config
from fedddpm_app.cli.options import Engine
from fedddpm_app.cli.run import _count_steps, _steps_before
from fedddpm_app.cli.run_view import RunView
from fedddpm_app.cli.start import how_to_resume
from fedddpm_app.config import ConfigError, load_config, read_overrides
from fedddpm_app.config.loading import packaged_app
from fedddpm_app.launch.flower_run import to_toml
from fedddpm_app.progress import ProgressEvent, parse_line
from fedddpm_app.recording.directory import run_directory
from fedddpm_app.recording.files import RecordingError
from fedddpm_app.recording.log import RunLog
from fedddpm_app.recording.reading import run_config_of
from fedddpm_app.recording.recorder import RunRecorder
from fedddpm_app.recording.status import read_status
from tests.conftest import ROOT, TINY, RunDirectory

runner = CliRunner()


def run(*arguments):
    return runner.invoke(app, ["run", "--app", str(ROOT), *arguments])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ('algorithm="fedavgg"', r'algorithm = "fedavgg" is not known: use one of fedddpm, fedddpm-plus, fedddpm-kd, '),
        ("batch-size=-1", "batch-size = -1"),
        ("batchsize=4", "did you mean batch-size"),
        ('prediction-type="eps"', "prediction-type = 'eps'"),
        ("image-size=9", "use image-size = 8"),
        ("auxiliary-sampler-steps=1001", "at most 1000"),
        ('device="cuda:99"', 'device = "cuda:99" is not there'),
        ('dataset="path:/nowhere"', "there is no such folder"),
        ("num-clients=11", "use fewer clients"),
        ("batch-size", "--run-config batch-size"),
        ('output-dir="~nobody-of-this-name/x"', "Give an absolute path"),
        ('output-dir="/dev/null/x"', "/dev/null/x cannot be made"),
        ("seed==1", "seed==1 has two equals signs; write seed=1"),
        ("dataset='digits\"'", "could not be loaded"),
        ("local-steps=0 local-epochs=1 warmup-steps=10", "not below the 7 steps of local-epochs = 1, so that"),
        ("max-examples-per-client=100", "max-examples-per-client = 100: use "),
        ("client-threads=4096", "client-threads = 4096 is more than the .* CPUs"),
        (f"run-name='{'x' * 101}'", "at most 100 letters"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(override, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("--run-config", override)
    assert result.exit_code == 2
    assert re.search(says, result.stderr)
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []  # nothing was made


@pytest.mark.slow
def test_a_stopped_run_is_continued_by_the_command(tmp_path, monkeypatch):
    """With its own keys, its clients' states and its log, also after it was moved; relative paths are the caller's."""

    def save(self, server_round, *arguments):
        original(self, server_round, *arguments)
        if server_round == 1:
            raise RecordingError("the disk is gone")

    monkeypatch.chdir(tmp_path)
    tiny = to_toml(TINY | {"output-dir": "here", "algorithm": "scaffold", "preview-every": 0, "local-steps": 4})
    whole = run("--engine", "inprocess", "-c", tiny, "-c", "run-name=whole")
    assert whole.exit_code == 0, whole.output
    original = RunRecorder.save_checkpoint
    with monkeypatch.context() as patch:
        patch.setattr(RunRecorder, "save_checkpoint", save)
        stopped = run("--engine", "inprocess", "-c", tiny, "-c", "run-name=stopped")
    assert stopped.exit_code == 1
    assert f"continue it: fedddpm run --resume {tmp_path}/here/stopped --engine inprocess\n" in stopped.stdout
    (tmp_path / "here" / "stopped").rename(tmp_path / "moved")
    assert _steps_before(tmp_path / "moved", load_config(run_config_of(tmp_path / "moved")), 100) == 50
    refused = run("--engine", "inprocess", "--resume", "moved", "-c", "local-steps=5")
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "local-steps was 4 and is 5" in refused.stderr
    done = run("--engine", "inprocess", "--resume", f"../{tmp_path.name}/moved", "-c", "round-timeout=60.0")
    assert done.exit_code == 0, done.output
    runs = [RunDirectory(tmp_path / "here" / "whole"), RunDirectory(tmp_path / "moved")]
    assert not (tmp_path / "here" / "stopped").exists()
    assert runs[0].losses() == runs[1].losses()
    assert not (runs[1].path / "client-state").exists()
    log = (runs[1].path / "log.txt").read_text()
    assert log.count("[ROUND 1/2]") == 1 == log.count("[ROUND 2/2]")
    assert "resumed after round 1" in log
    config = json.loads((runs[1].path / "config.json").read_text())
    assert config["resumed"][0]["changed"]["round-timeout"] == 60.0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--resume", "nowhere"), r"--resume = nowhere: .*/nowhere/config.json cannot be read \(No such file"),
        (("--resume-previous",), "--resume-previous needs --resume RUN"),
    ],
)
def test_a_folder_without_a_run_is_not_continued(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert re.search(says, result.stderr)
    assert list(tmp_path.iterdir()) == []


def test_run_in_process_then_sample(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = to_toml(TINY | {"output-dir": "here", "run-name": "a"})
    result = run("--engine", "inprocess", "--run-config", tiny)
    assert result.exit_code == 0, result.output
    directory = tmp_path / "here" / "a"
    lines = result.stdout.splitlines()
    assert lines[0] == lines[-1] == f"run directory: {directory}"
    assert "eval/loss" in result.stdout
    assert json.loads((directory / "summary.json").read_text())["status"] == "completed"
    log = (directory / "log.txt").read_text()
    assert "phase=train round=2/2" in log
    assert "[ROUND 2/2]" in log  # of Flower, which is not shown
    assert "\x1b" not in log
    assert "\nround 2/2 train     client 0 " in result.stdout
    assert "[ROUND" not in result.output
    assert "phase=" not in result.output

    drawn = runner.invoke(app, ["sample", str(directory), "--num-images", "9", "--steps", "2", "--sampler", "ddim"])
    assert drawn.exit_code == 0, drawn.output
    assert (directory / "samples" / "sample-ddim-2-seed0.png").exists()
    too_many = runner.invoke(app, ["sample", str(directory), "--steps", "51"])
    assert (too_many.exit_code, "at most 50" in too_many.stderr) == (2, True)
    unknown = runner.invoke(app, ["sample", str(directory), "--sampler", "euler"])
    assert (unknown.exit_code, "ddpm, ddim, dpm-solver++" in unknown.stderr) == (2, True)
    unknown_device = runner.invoke(app, ["sample", str(directory), "--device", "gpu"])
    assert (unknown_device.exit_code, "use auto, cpu" in unknown_device.stderr) == (2, True)
    no_png = runner.invoke(app, ["sample", str(directory), "--out", "sheet"])
    assert (no_png.exit_code, "ends in .png" in no_png.stderr) == (2, True)
    again = run("--engine", "inprocess", "--run-config", tiny)
    assert (again.exit_code, "holds a run already" in again.stderr) == (2, True)


def test_sample_without_a_run_says_what_to_give(tmp_path):
    result = runner.invoke(app, ["sample", str(tmp_path)])
    assert (result.exit_code, "completed run" in result.stderr) == (2, True)


EVENTS = [
    ProgressEvent("pretrain", 3, 10, 12, 0.1234, client=2),
    ProgressEvent("train", 3, 10, 0, 0.5, client=0, server_round=1, num_rounds=4),
    ProgressEvent("correct", 5, 5, 0, 0.25, server_round=4, num_rounds=4),
    ProgressEvent("auxiliary", 5, 5, 0, client=1),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: e.phase)
def test_progress_survives_the_log(event):
    assert parse_line("(ClientAppActor pid=7) " + event.to_line()) == event
    assert parse_line("INFO: [ROUND 1/2] loss=3") is None


def test_the_view_shows_progress_and_trouble():
    out = StringIO()
    view = RunView(1000, Console(file=out, width=200))
    for event in EVENTS:
        view.line(event.to_line())
    view.line("ERROR: something broke")
    view.line("INFO: chatter")
    view.line("(ClientAppActor pid=7)     raise ValueError(frame)")
    view.line("ERROR: the run failed: /x is full")
    view.line("ERROR: said again")
    assert "round 1/4 train" in out.getvalue()
    assert "something broke" in out.getvalue()
    assert "the run failed: /x is full" in out.getvalue()
    assert not any(text in out.getvalue() for text in ("chatter", "frame", "said again"))


@pytest.mark.parametrize("terminal", [False, True])
def test_the_time_left_follows_from_the_steps_done(terminal):
    """2 clients of 100 steps each side by side, then 2 more, one step a second: 200 s in all."""
    out = StringIO()
    now = 0.0
    view = RunView(400, Console(file=out, width=200, force_terminal=terminal), clock=lambda: now)
    assert view.seconds_left() is None
    with view:
        for pair, step, place in itertools.product((0, 2), (10, 50, 100), (0, 1)):
            now = step + 50.0 * pair
            view.line(ProgressEvent("train", step, 100, 100 - step, 0.5, pair + place, 1, 1).to_line())
            if place:  # both of the pair have told
                assert view.seconds_left() == pytest.approx(200 - now)
    assert view.seconds_left() == 0
    assert "train client 3" in out.getvalue() if terminal else "100/100 loss 0.5000 | run 100%" in out.getvalue()


def test_the_time_left_is_told_where_every_piece_of_work_is_short():
    """Each of 10 rounds takes 2 s and tells its end alone."""
    now = 100.0
    view = RunView(10 * 50, Console(file=StringIO()), clock=lambda: now)
    for server_round in range(1, 11):
        now += 2.0
        view.line(ProgressEvent("train", 50, 50, 0, 0.5, 0, server_round, 10).to_line())
        expected = None if server_round == 1 else pytest.approx(2.0 * (10 - server_round))
        assert view.seconds_left() == expected


def test_the_time_left_of_a_resumed_run_is_that_of_the_rest():
    now = 0.0
    out = StringIO()
    view = RunView(400, Console(file=out, width=200), clock=lambda: now, steps_before=300)
    now = 50.0
    view.line(ProgressEvent("train", 50, 100, 50, 0.5, 0, 4, 4).to_line())
    assert view.seconds_left() == pytest.approx(50.0)
    assert "run 88%, about 50 s left" in out.getvalue()


def test_the_command_that_continues_a_run_has_what_the_run_had(tmp_path, monkeypatch, config):
    monkeypatch.chdir(tmp_path)
    own = dataclasses.replace(config, run=dataclasses.replace(config.run, algorithm="mine:Strategy"))
    there, folder = tmp_path / "a run", tmp_path / "app"
    folder.mkdir()
    (folder / "pyproject.toml").write_text('[tool.flwr.app.config]\nalgorithm = "fedavg"\n')
    assert how_to_resume(there, packaged_app(), config, Engine.simulation, {}) == f"fedddpm run --resume '{there}'"
    found = how_to_resume(there, folder, own, Engine.inprocess, {"num-supernodes": 4})
    assert shlex.split(found)[3:] == [
        *(str(there), "--app", str(folder), "--engine", "inprocess"),
        *("--run-config", 'algorithm="mine:Strategy"', "--federation-config", "num-supernodes=4"),
    ]


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        ({"algorithm": "fedavg", "num-rounds": 5, "local-steps": 7}, 5 * 4 * 7),
        ({"algorithm": "fedavg", "num-rounds": 5, "local-steps": 7, "clients-per-round": 2}, 5 * 2 * 7),
        ({"num-rounds": 5, "pretrain-steps": 7, "correction-steps": 11, "local-steps": 3}, 5 * 4 * 3 + 4 * 7 + 5 * 11),
        # 1,437 images, of which a tenth is held out, 359 or 360 a client: 324 are 41 batches of 8
        ({"algorithm": "fedavg", "num-rounds": 1, "partition": "iid", "local-steps": 0, "local-epochs": 1}, 4 * 41),
    ],
)
def test_the_steps_of_the_whole_run_are_counted(run_config, overrides, steps):
    assert _count_steps(load_config(run_config | overrides)) == steps


@pytest.mark.parametrize("content", ["no toml", "[project]\nname='x'", "[tool.flwr.app]\npublisher='x'"])
def test_a_folder_of_another_project_is_refused_as_the_app(tmp_path, content):
    (tmp_path / "pyproject.toml").write_text(content)
    result = runner.invoke(app, ["run", "--app", str(tmp_path)])
    assert (result.exit_code, "there is no FedDDPM app in it" in result.stderr) == (2, True)


def test_names_of_runs_never_collide(run_config, tmp_path):
    config = load_config(run_config | {"run-name": ""})
    made = [run_directory(config, tmp_path) for _ in range(3)]
    assert len(set(made)) == 3
    assert all(directory.is_dir() for directory in made)
    RunLog(made[0])
    with pytest.raises(ConfigError, match=r"holds a log\.txt already"):
        RunLog(made[0])
    first, second = RunRecorder(made[0]), RunRecorder(made[0])
    first.write_config({}, Run.create_empty(1))
    with pytest.raises(ConfigError, match="is still running: another process holds it"):
        second.write_config({}, Run.create_empty(2))
    first.end("completed", {})
    with pytest.raises(ConfigError, match="holds a run already"):
        second.write_config({}, Run.create_empty(2))
    assert read_status(made[0]).state == "completed"


def test_a_folder_is_that_of_a_run_once_its_config_is_complete(tmp_path, monkeypatch):
    """A run that is killed before that can be started again under its name."""

    def killed(path, content):
        assert not path.exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fedddpm_app.recording.recorder.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            RunRecorder(tmp_path / "run").write_config({}, Run.create_empty(1))
    RunRecorder(tmp_path / "run").write_config({}, Run.create_empty(2))


def test_the_folder_of_a_class_from_outside_has_a_plain_name(run_config, tmp_path):
    outside = {"algorithm": "examples.l1_proximal:L1Proximal", "run-name": ""}
    directory = run_directory(load_config(run_config | outside), tmp_path)
    assert directory.name.startswith("examples-l1-proximal-L1Proximal-digits-")


def test_overrides_reach_flower_unchanged(tmp_path):
    overrides = {"a": 'ünï 😀 \'=\\ "x"', "b": 1.5, "c": True, "d": 3}
    path = tmp_path / "a.toml"
    path.write_text(to_toml(overrides), encoding="utf-8")
    assert parse_config_args([str(path)]) == overrides
    assert read_overrides("-c", [to_toml(overrides)], {}).values == overrides


def test_a_file_and_pairs_go_together_and_the_later_one_counts():
    """As docs/deployment.md has them; `flwr run` itself takes a file only alone."""
    given = [str(ROOT / "conf" / "sites.toml"), 'dataset="path:/elsewhere" num-rounds=3', "num-rounds=2"]
    _, overrides = read_config(ROOT, given)
    assert (overrides["partition"], overrides["dataset"], overrides["num-rounds"]) == ("sites", "path:/elsewhere", 2)
