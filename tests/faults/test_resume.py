"""A run that is killed at any point, and resumed, ends like a run that was not killed, bit for bit."""

import random
import signal

import pytest

from tests.conftest import RunDirectory
from tests.faults.killing import run_in_child

ALGORITHMS = {
    "fedddpm": {"correction-keep-optimizer": True, "num-rounds": 3},
    "fedddpm-plus": {"num-rounds": 4, "plus-threshold": 1e9, "plus-max-corrections": 2},
    "scaffold": {"num-rounds": 4, "clients-per-round": 3},
    "fedadam": {"algorithm": "fedavg", "aggregator": "fedadam", "num-rounds": 4},
}


@pytest.fixture
def settings(run_config, tmp_path):
    """A run config for runs of an algorithm by name, each in a folder of its own."""

    def make(algorithm, name, **more):
        special = {"algorithm": algorithm} | ALGORITHMS[algorithm]
        return run_config | special | {"run-name": name, "state-dir": str(tmp_path / f"state-{name}")} | more

    return make


def final_weights(path):
    folder = max((path / "checkpoints").glob("round-*"))
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def check_equal(killed, whole):
    assert killed.summary["status"] == "completed"
    assert [row["phase"] for row in killed.stats] == [row["phase"] for row in whole.stats]
    assert killed.losses() == whole.losses()
    assert final_weights(killed.path) == final_weights(whole.path)
    same = ("comm/up_mb", "comm/down_mb", "images/preview", "images/auxiliary")
    assert {key: killed.summary[key] for key in same} == {key: whole.summary[key] for key in same}


def kill_and_resume(config, whole, tmp_path, seed, **kill):
    """Kill a run, resume it until it completes, and compare it with the whole run."""
    path = tmp_path / str(config["run-name"])
    ended, _, _ = run_in_child(config, log=tmp_path / "log", **kill)
    if ended == signal.SIGKILL and not (path / "config.json").exists():
        ended, _, _ = run_in_child(config, log=tmp_path / "log")
    elif ended == signal.SIGKILL:
        ended, _, _ = run_in_child(config | {"resume": str(path)}, log=tmp_path / "log")
    assert ended == 0, f"kill point {seed}, {kill}"
    check_equal(RunDirectory(path), whole)
    return ended


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_kills_at_random_points(settings, tmp_path, algorithm):
    config = settings(algorithm, "whole")
    ended, seconds, operations = run_in_child(config, log=tmp_path / "log")
    assert ended == 0, (tmp_path / "log").read_text()
    whole = RunDirectory(tmp_path / "whole")
    generator = random.Random(17)
    for index in range(20):
        kill = {"after_events": generator.randrange(1, operations)}
        if index % 2:
            kill = {"after_seconds": generator.uniform(0, seconds)}
        kill_and_resume(settings(algorithm, f"killed-{index}"), whole, tmp_path, index, **kill)
