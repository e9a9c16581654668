import json
import re

import pytest
from typer.testing import CliRunner

from fedddpm_app.cli import app
from fedddpm_app.config import load_config
from fedddpm_app.console import RunView
from fedddpm_app.progress import ProgressEvent, parse_line
from fedddpm_app.simulation import to_toml
from tests.conftest import ROOT, TINY

runner = CliRunner()


def run(*arguments):
    return runner.invoke(app, ["run", "--app", str(ROOT), *arguments])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ('algorithm="fedavgg"', r'algorithm = "fedavgg" is not known: use one of fedavg, fedddpm\.'),
        ("batch-size=0", "batch-size = 0"),
        ("batchsize=4", "did you mean batch-size"),
        ('prediction-type="eps"', "prediction-type = 'eps'"),
        ("image-size=9", "use image-size = 8"),
        ("auxiliary-sampler-steps=1001", "at most 1000"),
        ('device="cuda:99"', 'device = "cuda:99" is not there'),
        ('dataset="path:/nowhere"', "there is no such folder"),
        ("num-clients=11", "use fewer clients"),
        ("batch-size", "--run-config batch-size"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(override, says):
    result = run("--run-config", override)
    assert result.exit_code == 2
    assert re.search(says, result.stderr)
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


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

    drawn = runner.invoke(app, ["sample", str(directory), "--num-images", "9", "--steps", "2", "--sampler", "ddim"])
    assert drawn.exit_code == 0, drawn.output
    assert (directory / "samples" / "sample-ddim-2-seed0.png").exists()
    too_many = runner.invoke(app, ["sample", str(directory), "--steps", "51"])
    assert (too_many.exit_code, "at most 50" in too_many.stderr) == (2, True)
    unknown = runner.invoke(app, ["sample", str(directory), "--sampler", "euler"])
    assert (unknown.exit_code, "ddpm, ddim, dpm-solver++" in unknown.stderr) == (2, True)
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
    assert parse_line("\x1b[36m(ClientAppActor pid=7)\x1b[0m " + event.to_line() + "\x1b[32m [repeated]") == event
    assert parse_line("INFO: [ROUND 1/2] loss=3") is None


def test_the_view_counts_the_steps_of_the_whole_run(run_config):
    from io import StringIO

    from rich.console import Console

    config = load_config(run_config)
    out = StringIO()
    view = RunView(config, Console(file=out, width=200))
    for event in EVENTS:
        view.line(event.to_line())
    view.line("ERROR: something broke")
    view.line("INFO: chatter")
    assert "round 1/4 train" in out.getvalue()
    assert "something broke" in out.getvalue()
    assert "chatter" not in out.getvalue()
    assert view.seconds_left() is not None
