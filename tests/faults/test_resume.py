"""A run that is killed at any point, and resumed, ends like a run that was not killed, bit for bit."""

import errno
import json
import logging
import os
import random
import shutil
import signal
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import client_app
import server_app
from fedddpm_app.algorithms.fedavg import FederatedAveraging
from fedddpm_app.algorithms.fedddpm import FedDDPM
from fedddpm_app.apps.resuming import find_resumable
from fedddpm_app.auxiliary.pretraining import PRETRAIN
from fedddpm_app.cli.claim import continue_directory
from fedddpm_app.config import ConfigError, load_config
from fedddpm_app.disk.owned import LOCK, OwnerLock
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.inprocess.grid import run_inprocess
from fedddpm_app.launch.leftovers import find_left_overs
from fedddpm_app.recording import checkpoints
from fedddpm_app.recording.files import RecordingError, write_json
from fedddpm_app.recording.layout import STATS
from fedddpm_app.recording.recorder import RunRecorder
from tests.conftest import RunDirectory
from tests.faults.killing import run_in_child

ALGORITHMS = {
    "fedddpm": {"correction-keep-optimizer": True, "num-rounds": 3},
    "fedddpm-plus": {"num-rounds": 4, "plus-threshold": 1e9, "plus-max-corrections": 2},
    "scaffold": {"num-rounds": 4, "clients-per-round": 3},
    "fedadam": {"algorithm": "fedavg", "aggregator": "fedadam", "num-rounds": 4},
    "fedddpm-late": {"late-teacher": "local", "late-cycles": 2, "num-rounds": 4},
}
OTHERS = {
    "feddyn": {"algorithm": "feddyn"},
    "init-from-pretrained": {"algorithm": "fedddpm-plus", "init-from-pretrained": True, "plus-threshold": 1e9},
    "fedavgm": {"algorithm": "fedavg", "aggregator": "fedavgm"},
    "moon": {"algorithm": "moon"},
    "local-only": {"algorithm": "local-only"},
    "feddiffuse": {"algorithm": "feddiffuse", "clients-per-round": 3},
    "usplit": {"algorithm": "feddiffuse", "feddiffuse-split": "usplit", "wire-dtype": "int8-delta"},
    "fedphd": {"algorithm": "fedphd", "cloud-every": 3},  # after round 1: pruned, and in the middle of an edge period
    "fedphd-sparse": {"algorithm": "fedphd", "cloud-every": 3, "prune-round": 1},
    "fedphd-before": {"algorithm": "fedphd", "cloud-every": 3, "prune-round": 2},
    "pdfed": {"algorithm": "pdfed", "pdfed-samples": 20, "pdfed-speed-spread": 4.0, "pdfed-validators": 1},
    "pdfed-merge": {"algorithm": "pdfed", "pdfed-samples": 20, "pdfed-node": "merge", "pdfed-dedup": True},
    "centralized": {"algorithm": "centralized"},
    "aux-only": {"algorithm": "aux-only"},
    "int8-delta": {"algorithm": "fedavg", "wire-dtype": "int8-delta"},
    "fedddpm-kd": {"algorithm": "fedddpm-kd", "kd-warmup-steps": 2},
    "kd-only": {"algorithm": "kd-only"},
    "mixture": {"algorithm": "mixture", "class-conditional": True},
    "late-mean": {"algorithm": "fedddpm-late", "late-teacher": "mean", "correction-steps": 20},
    "cycles": {"algorithm": "fedddpm-late", "late-teacher": "local", "late-cycles": 3},
    "from-global": {"algorithm": "fedddpm-kd", "pretrain-from": "global"},
    "noted": {"algorithm": "tests.faults.test_resume:Noted"},
    "halved": {"algorithm": "tests.faults.test_resume:Halved"},
    "nodes": {"algorithm": "tests.faults.test_resume:Halved", "auxiliary-generation": "nodes"},
    "halved-from-global": {"algorithm": "tests.faults.test_resume:Halved", "pretrain-from": "global"},
}
FEW_PICTURES = {"eval-every": 0, "preview-every": 0}
_SLOW = {"marks": pytest.mark.slow}
_QUICK = ("feddiffuse",)


@pytest.fixture
def settings(run_config, tmp_path):
    """A run config for runs of an algorithm by name, each in a folder of its own."""

    def make(algorithm, name, **more):
        special = {"algorithm": algorithm} | (ALGORITHMS | OTHERS)[algorithm]
        return (
            run_config
            | FEW_PICTURES
            | special
            | {"run-name": name, "state-dir": str(tmp_path / f"state-{name}")}
            | more
        )

    return make


def final_weights(path):
    folder = max((path / "checkpoints").glob("round-*"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.safetensors")}


def ledger_of(run):
    path = run.path / "ledger.jsonl"
    return path.read_bytes() if path.exists() else b""


def check_equal(resumed, whole):
    assert resumed.summary["status"] == "completed"
    assert [row["phase"] for row in resumed.stats] == [row["phase"] for row in whole.stats]
    assert resumed.losses() == whole.losses()
    assert final_weights(resumed.path) == final_weights(whole.path)
    same = ("comm/up_mb", "comm/down_mb", "compute/steps", "images/preview", "images/auxiliary")
    assert {key: resumed.summary[key] for key in same} == {key: whole.summary[key] for key in same}
    assert resumed.summary.get("comm/evaluation_mb") == whole.summary.get("comm/evaluation_mb")
    assert not (resumed.path / "unfinished").exists()
    assert ledger_of(resumed) == ledger_of(whole)


def folder_of(config):
    return Path(str(config["resume"] or f"{config['output-dir']}/{config['run-name']}"))


def run_here(config):
    run_inprocess(server_app.app, client_app.app, config, int(config["num-clients"]))
    return RunDirectory(folder_of(config))


def kill_at_random_points(settings, tmp_path, algorithm, count):
    """Kill and resume ``count`` runs: half of them at a file operation, half at a time."""
    ended, seconds, operations = run_in_child(settings(algorithm, "whole"), log=tmp_path / "log")
    assert ended == 0, (tmp_path / "log").read_text()
    whole, generator, killed = RunDirectory(tmp_path / "whole"), random.Random(17), 0
    for index in range(count):
        config = settings(algorithm, f"killed-{index}")
        point = {"after_events": generator.randrange(1, operations)}
        if index % 2:
            point = {"after_seconds": generator.uniform(0, seconds)}
        ended, _, _ = run_in_child(config, log=tmp_path / "log", **point)
        killed += ended == signal.SIGKILL
        if ended == signal.SIGKILL:
            begun = (folder_of(config) / "config.json").exists()
            again = config | ({"resume": str(folder_of(config))} if begun else {})
            ended, _, _ = run_in_child(again, log=tmp_path / "log")
        assert ended == 0, f"{index}, {point}: {(tmp_path / 'log').read_text()[-2000:]}"
        for item in find_left_overs(tmp_path):  # as `fedddpm run` does first; after a kill at the very end it is needed
            if item.run == folder_of(config) and not item.is_resumable:
                assert item.remove()
        check_equal(RunDirectory(folder_of(config)), whole)
        shutil.rmtree(folder_of(config))
    return killed


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_twenty_kills_at_random_points(settings, tmp_path, algorithm):
    assert kill_at_random_points(settings, tmp_path, algorithm, 20) >= 15  # a few runs end before their time


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["fedddpm", "scaffold"])
def test_kills_at_random_points(settings, tmp_path, algorithm):
    assert kill_at_random_points(settings, tmp_path, algorithm, 2)


class StopError(Exception):
    """Ends a run at a known place."""


@contextmanager
def stopping_after(server_round):
    """Have a server stop after the checkpoint of a round."""

    def save(self, saved_round, *arguments):
        original(self, saved_round, *arguments)
        self.wait_for_checkpoint()
        if saved_round == server_round:
            raise StopError

    original = RunRecorder.save_checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunRecorder, "save_checkpoint", save)
        yield


@pytest.fixture
def stopped(settings):
    """Have a run stop after the checkpoint of a round; return the config to resume it."""

    def make(algorithm, server_round, **more):
        config = settings(algorithm, "stopped", **more)

        with stopping_after(server_round), pytest.raises(StopError):
            run_here(config)
        return config | {"resume": str(folder_of(config))}

    return make


@pytest.mark.parametrize(
    "algorithm",
    [*_QUICK, *(pytest.param(name, **_SLOW) for name in OTHERS if name not in _QUICK)],
)
def test_every_state_is_resumed(settings, stopped, algorithm):
    more = {"num-rounds": 3}
    resumed = run_here(stopped(algorithm, 1, **more))
    check_equal(resumed, run_here(settings(algorithm, "whole", **more)))
    assert [row["round"] for row in resumed.rounds()] == [1, 2, 3]
    about = json.loads((resumed.path / "config.json").read_text())
    assert [entry["after_round"] for entry in about["resumed"]] == [1]


@pytest.mark.parametrize("server_round", [0, pytest.param(2, **_SLOW)])
def test_models_that_generate_together_are_resumed_before_the_rounds_and_after_them(settings, stopped, server_round):
    more = {"eval-final-images": 12}
    resumed, whole = run_here(stopped("mixture", server_round, **more)), run_here(settings("mixture", "whole", **more))
    check_equal(resumed, whole)
    assert resumed.summary["metrics"] == whole.summary["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["fedddpm", "init-from-pretrained"])
def test_a_run_is_resumed_twice(settings, stopped, algorithm):
    """What one process has read from a checkpoint is in the next checkpoint, also if it was not used."""
    more = {"num-rounds": 4, "correction-keep-optimizer": True, "plus-max-corrections": 0}
    resume = stopped(algorithm, 1, **more)
    with stopping_after(2), pytest.raises(StopError):
        run_here(resume)
    check_equal(run_here(resume), run_here(settings(algorithm, "whole", **more)))


@pytest.mark.slow
def test_a_complete_run_with_an_auxiliary_set_gets_more_rounds_without_a_new_set(settings, monkeypatch):
    evaluated = {"eval-every": 1, "preview-every": 1}
    first = settings("fedddpm", "first", **evaluated, **{"num-rounds": 1})
    run_here(first)
    resume = first | {"resume": str(folder_of(first)), "num-rounds": 3}
    monkeypatch.setattr("fedddpm_app.auxiliary.phase.ModelCollection", None)
    more = run_here(resume)
    monkeypatch.undo()
    check_equal(more, run_here(settings("fedddpm", "whole", **evaluated)))


class Halved(FedDDPM):
    """Uses a part of the set that it inherits: a resumed run builds it again."""

    def build_auxiliary(self, models):
        return super().build_auxiliary(models).select(torch.arange(0, 12, 2))


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["halved-from-global", "fedddpm", "nodes"])
def test_a_stop_between_the_set_and_the_next_checkpoint(settings, monkeypatch, algorithm):
    """The set's cost is counted once, and the models that clients uploaded leave the disk as in a whole run."""
    more = {"num-rounds": 3, "pretrain-from": "global"}  # so that the set is built after the first checkpoint
    config = settings(algorithm, "stopped", **more)

    def stop(*arguments):
        raise StopError

    monkeypatch.setattr(FedDDPM, "correct", stop)
    with pytest.raises(StopError):
        run_here(config)
    monkeypatch.undo()
    resume = config | {"resume": str(folder_of(config))}
    with stopping_after(2), pytest.raises(StopError):
        run_here(resume)
    left = [*(folder_of(config) / "unfinished").glob("pretrain-*")]
    assert len(left) == (0 if algorithm == "fedddpm" else 4)  # its set is not stored, so the models are needed again
    check_equal(run_here(resume), run_here(settings(algorithm, "whole", **more)))


@pytest.mark.parametrize(
    ("algorithm", "from_pretrained", "left"),
    [("fedddpm", False, 0), pytest.param("fedddpm", True, 4, **_SLOW), pytest.param("fedddpm-kd", False, 4, **_SLOW)],
)
def test_without_checkpoints_own_models_go_once_the_set_is_stored(
    settings, monkeypatch, algorithm, from_pretrained, left
):
    """Except where the run, or one that is resumed from its start, needs them again: nobody pretrains twice."""
    more = {"checkpoint-keep": 0, "num-rounds": 1, "init-from-pretrained": from_pretrained}
    config, found = settings(algorithm, "stopped", **more), []

    def stop(strategy, *arguments):
        found.extend(strategy.recorder.unfinished.glob("pretrain-*"))
        raise StopError

    monkeypatch.setattr(FedDDPM, "correct", stop)
    with pytest.raises(StopError):
        run_here(config)
    assert len(found) == left
    monkeypatch.undo()
    monkeypatch.setitem(FedDDPM.client_actions, "pretrain", replace(PRETRAIN, run=None))
    assert run_here(config | {"resume": str(folder_of(config))}).summary["status"] == "completed"


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["from-global", "halved-from-global"])
def test_a_lost_set_of_an_earlier_round_is_built_from_the_models_of_that_round(settings, stopped, algorithm):
    resume = stopped(algorithm, 2, **{"num-rounds": 3})
    shutil.rmtree(folder_of(resume) / "auxiliary", ignore_errors=True)
    check_equal(run_here(resume), run_here(settings(algorithm, "whole", **{"num-rounds": 3})))


@pytest.mark.slow
def test_one_damaged_upload_costs_one_pretraining(settings, stopped):
    """The uploads that are kept are not counted a second time."""
    resume = stopped("halved", 1, **{"num-rounds": 2})
    damage(min((folder_of(resume) / "unfinished").glob("pretrain-*.safetensors")))
    resumed, whole = run_here(resume), run_here(settings("halved", "whole", **{"num-rounds": 2}))
    assert final_weights(resumed.path) == final_weights(whole.path)
    more = {key: resumed.summary[key] - whole.summary[key] for key in ("compute/steps", "comm/up_mb")}
    upload = whole.stats[1]["comm/up_mb"] / 4
    assert more == {"compute/steps": resume["pretrain-steps"], "comm/up_mb": pytest.approx(upload, abs=1e-5)}


@pytest.mark.slow
def test_a_lost_set_whose_models_are_gone_is_an_error_without_new_trainings(settings, stopped):
    resume = stopped("fedddpm", 2, **{"num-rounds": 3, "pretrain-from": "global"})
    shutil.rmtree(folder_of(resume) / "auxiliary")
    with pytest.raises(RoundFailedError, match="restore the folders unfinished and auxiliary"):
        run_here(resume)


def test_rounds_without_a_checkpoint_are_not_thrown_away(stopped):
    """Nor is one line lost with another that is damaged."""
    resume = stopped("fedadam", 2)
    shutil.rmtree(folder_of(resume) / "checkpoints")
    with (folder_of(resume) / "stats.jsonl").open("ab") as file:
        file.write(b"\xff\n")
    before = (folder_of(resume) / "stats.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=r"has rounds in stats.jsonl, but no checkpoint to continue from"):
        run_here(resume)
    assert (folder_of(resume) / "stats.jsonl").read_bytes() == before


def rounds_in(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


_DAMAGED = [pytest.param(name, **_SLOW) for name in ("state.json", "manifest.json", None)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.safetensors", *_DAMAGED])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_is_offered(settings, stopped, name):
    resume = stopped("fedadam", 3)
    folder = folder_of(resume)
    assert rounds_in(folder) == ["round-0002", "round-0003"]
    newest = folder / "checkpoints" / "round-0003"
    damage(newest / name) if name else (newest / "ema.safetensors").unlink()
    with pytest.raises(
        ConfigError, match=r"round-0003/.* (damaged|missing|read).*; resume from round 2 by resume-previous"
    ):
        run_here(resume)
    resumed = run_here(resume | {"resume-previous": True})
    check_equal(resumed, run_here(settings("fedadam", "whole")))


def test_without_a_good_checkpoint_nothing_is_offered(stopped):
    resume = stopped("fedadam", 1, **{"checkpoint-keep": 1})
    damage(folder_of(resume) / "checkpoints" / "round-0001" / "model.safetensors")
    with pytest.raises(ConfigError, match="no earlier checkpoint is good"):
        run_here(resume)
    with pytest.raises(ConfigError, match="no good checkpoint before round 1"):
        run_here(resume | {"resume-previous": True})


DIFFERENCES = [
    ({"learning-rate": 0.5}, r"learning-rate was 0\.003 and is 0\.5.* Only these keys may change: num-rounds"),
    ({"seed": 3, "local-steps": 4}, "local-steps was 3 and is 4; seed was 0 and is 3"),
    ({"num-rounds": 1}, "num-rounds = 1, but .* has 2 rounds: use at least 2"),
    ({"memorization-check": "never"}, "memorization-check was 'always' and is 'never'"),
    ({"resume": "/no/such/run"}, "config.json cannot be read .*; give the folder of a run"),
]


def test_another_config_is_refused_with_the_differences(stopped):
    resume = stopped("fedadam", 2, **{"memorization-check": "always"})
    before = contents(folder_of(resume))
    for changed, says in DIFFERENCES:
        with pytest.raises(ConfigError, match=says):
            run_here(resume | changed)
        assert contents(folder_of(resume)) == before
    config = folder_of(resume) / "config.json"
    config.write_text(config.read_text().replace('"learning-rate": 0.003', '"learning-rate": 0.5'))
    with pytest.raises(ConfigError, match=r"learning-rate was 0\.003 and is 0\.5"):
        run_here(resume | {"learning-rate": 0.5})


@pytest.mark.slow
def test_the_way_in_which_clients_check_their_models_may_not_change(stopped):
    resume = stopped("fedddpm", 1, **{"memorization-check": "always", "max-memorized-share": 1.0})
    with pytest.raises(ConfigError, match=r"memorization-rate was 0\.01 and is 0\.5"):
        run_here(resume | {"memorization-rate": 0.5})


@pytest.mark.parametrize(
    ("before", "now", "is_accepted"),
    [
        ("/a", "/a", True),
        ("/a", "/b", False),
        ("/a", "{run}/client-state", False),
        ("/old place/client-state", "{run}/client-state", True),  # the run was moved, and its clients' states with it
        ("", "", True),
        ("", "/home/jane/.flwr/fedddpm-state", True),  # `fedddpm run` names the folder of a run of `flwr run`
        ("", "/b", False),
    ],
)
def test_a_private_run_is_resumed_only_where_its_clients_accounts_are(stopped, run_config, before, now, is_accepted):
    """Also before the first checkpoint, when its pretraining has been spent."""
    resume = stopped("fedadam", 1)
    folder = folder_of(resume)
    shutil.rmtree(folder / "checkpoints")
    (folder / STATS).unlink()
    now = now.format(run=folder)
    saved = resume | {"train-dp-epsilon": 3.0, "state-dir": before}
    (folder / "config.json").write_text(json.dumps({"run_config": saved | {"resume": ""}, "run_id": "1"}))
    given = saved | {"state-dir": now}
    if is_accepted:
        assert find_resumable(folder, load_config(given), given) is None
    else:
        with pytest.raises(
            ConfigError, match=f'state-dir was "{before}" and is "{now}": .* use state-dir = "{before}"'
        ):
            find_resumable(folder, load_config(given), given)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_goes_on_is_refused_and_one_of_a_host_that_is_gone_is_not(stopped, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("fedddpm"), "propagate", True)
    resume = stopped("fedadam", 3)
    folder = folder_of(resume)
    write_json(folder / "summary.json", {"status": "running", "owner": {"pid": 1, "started": 0.0, "host": "container"}})
    lock = OwnerLock(folder / LOCK)
    assert lock.acquire()
    with pytest.raises(ConfigError, match=r"is still running, by .*container.*; stop it first"):
        run_here(resume)
    lock.release()
    assert run_here(resume | {"eval-draws": 2, "eval-every": 3}).summary["status"] == "completed"
    assert "the metrics of the new rounds are measured with another eval-draws: they do not continue" in caplog.text


def set_digest(folder, name, digest):
    about = json.loads((folder / "config.json").read_text())
    about["data"][name] = digest
    (folder / "config.json").write_text(json.dumps(about))


def test_other_training_images_are_refused_and_other_test_images_are_named(stopped, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("fedddpm"), "propagate", True)
    resume = stopped("fedadam", 3)
    folder = folder_of(resume)
    began = json.loads((folder / "config.json").read_text())["data"]
    assert sorted(began) == ["partition", "test", "train"]
    for name, which in (("train", "training images, or their labels,"), ("partition", "clients' parts of the")):
        set_digest(folder, name, "other")
        with pytest.raises(ConfigError, match=f"resume: the {which}.* are not those that .*/stopped began"):
            run_here(resume)
        with pytest.raises(ConfigError, match=which):  # `fedddpm run` says so before it starts Flower
            continue_directory(load_config(resume), resume)
        set_digest(folder, name, began[name])
    set_digest(folder, "test", "other")
    assert run_here(resume).summary["status"] == "completed"
    assert "the new rounds are measured with another set of test images: they do not continue" in caplog.text
    assert json.loads((folder / "config.json").read_text())["data"] == began  # of the newest rounds


class Noted(FederatedAveraging):
    """Records a value before round 1."""

    def prepare(self, grid, weights):
        self.record(**{"my/prepared": 7})
        return weights


def test_what_is_recorded_before_round_1_outlives_a_stop(settings, stopped):
    (initial,) = [row for row in run_here(stopped("noted", 0)).stats if row["phase"] == "initial"]
    assert initial["my/prepared"] == 7


@pytest.mark.slow
def test_a_complete_run_gets_more_rounds(settings):
    evaluated = {"eval-every": 1, "preview-every": 1}  # which depends on the last round otherwise
    first = settings("fedadam", "first", **evaluated, **{"num-rounds": 2})
    run_here(first)
    resume = first | {"resume": str(folder_of(first))}
    with pytest.raises(ConfigError, match="is complete, with 2 rounds; give a num-rounds above 2"):
        run_here(resume)
    more = run_here(resume | {"num-rounds": 4})
    check_equal(more, run_here(settings("fedadam", "whole", **evaluated)))


@pytest.mark.parametrize(
    ("algorithm", "keeper"), [("scaffold", "algorithm"), ("int8-delta", "wire-dtype"), ("feddiffuse", "algorithm")]
)
def test_a_complete_run_whose_clients_removed_their_states_is_refused(settings, algorithm, keeper):
    stateful = settings(algorithm, "stateful", **{"num-rounds": 2, "clients-per-round": 0, "checkpoint-every": 1})
    run_here(stateful)
    resume = stateful | {"resume": str(folder_of(stateful))}
    for more in ({"num-rounds": 3}, {"resume-previous": True}):
        with pytest.raises(ConfigError, match=f'its clients remove the state that {keeper} = "{algorithm}" keeps'):
            run_here(resume | more)
    assert rounds_in(folder_of(stateful)) == ["round-0001", "round-0002"]


@pytest.mark.slow
@pytest.mark.parametrize(("sharing", "action"), [("models", "pretrain"), ("images", "share_images")])
def test_clients_that_have_pretrained_do_not_pretrain_again(settings, monkeypatch, sharing, action):
    trained, declared = [], FedDDPM.client_actions[action]

    def train(request):
        trained.append(request.partition_id)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return declared.run(request)

    config = settings("fedddpm", "stopped", **{"auxiliary-sharing": sharing})
    whole = run_here(settings("fedddpm", "whole", **{"auxiliary-sharing": sharing}))
    monkeypatch.setattr("fedddpm_app.inprocess.grid._PULL_SECONDS", 0.0)
    monkeypatch.setitem(FedDDPM.client_actions, action, replace(declared, run=train))
    with pytest.raises(KeyboardInterrupt):
        run_here(config)
    assert not (folder_of(config) / "checkpoints").exists()
    check_equal(run_here(config | {"resume": str(folder_of(config))}), whole)
    assert trained == [0, 1, 2, 2, 3]


def fill_disk_at(rounds, monkeypatch):
    """Have no checkpoint of these rounds fit on the disk."""

    def write(folder, *arguments):
        if int(folder.name.rpartition("-")[2]) in rounds:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(folder, *arguments)

    original = checkpoints._write_files
    monkeypatch.setattr(checkpoints, "_write_files", write)


def test_a_checkpoint_on_a_full_disk_is_missing_and_the_run_goes_on(settings, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("fedddpm"), "propagate", True)

    fill_disk_at([2], monkeypatch)
    kept = []
    monkeypatch.setattr(RunRecorder, "keep_checkpoints", lambda self, _: kept.extend(rounds_in(self.directory)))
    run = run_here(settings("fedadam", "whole", **{"num-rounds": 3}))
    assert run.summary["status"] == "completed"
    assert kept == ["round-0001", "round-0003"]  # the two newest ones, whatever their rounds
    assert "the checkpoint of round 2 is missing, and the run continues" in caplog.text
    assert "No space left on device" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["scaffold", "fedadam", "halved"])
def test_the_last_checkpoint_on_a_full_disk_fails_the_run(settings, monkeypatch, algorithm):
    """The clients keep their states then, and the server the pretrained models: the round before is resumed."""
    fill_disk_at([4], monkeypatch)
    more = {"num-rounds": 4}
    config = settings(algorithm, "stopped", **more)
    with pytest.raises(RecordingError, match="round-0004 cannot be written"):
        run_here(config)
    monkeypatch.undo()
    assert json.loads((folder_of(config) / "summary.json").read_text())["status"] == "failed"
    whole = run_here(settings(algorithm, "whole", **more))
    with monkeypatch.context() as patch:
        patch.setitem(FedDDPM.client_actions, "pretrain", replace(PRETRAIN, run=None))
        check_equal(run_here(config | {"resume": str(folder_of(config))}), whole)


@pytest.mark.slow
def test_clients_do_not_outlive_the_checkpoints_that_need_their_states(settings, monkeypatch):
    """A run whose checkpoints fail again and again would go on to where no checkpoint can be resumed."""
    fill_disk_at(range(2, 20), monkeypatch)
    config = settings("scaffold", "stopped", **{"num-rounds": 8})
    with pytest.raises(RecordingError, match="round-0003 cannot be written"):
        run_here(config)
    monkeypatch.undo()
    resume = config | {"resume": str(folder_of(config))}
    with pytest.raises(ConfigError, match=r'state-dir was ".*" and is "/elsewhere": the clients .* use state-dir = "'):
        run_here(resume | {"state-dir": "/elsewhere"})
    check_equal(run_here(resume), run_here(settings("scaffold", "whole", **{"num-rounds": 8})))


def test_a_checkpoint_of_another_model_is_refused(settings, stopped, monkeypatch):
    resume = stopped("fedadam", 1)
    monkeypatch.setattr("fedddpm_app.apps.resuming._check_equal", lambda *_: None)
    with pytest.raises(
        ConfigError, match=r"the checkpoint's model does not fit the model of this run: .* use the model"
    ):
        run_here(resume | {"unet-channels": "16,32"})
