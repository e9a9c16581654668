"""The real thing: `flwr run` through Ray, in a Flower home and on ports of its own."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from datasets import load_from_disk
from diffusers import DDPMPipeline

from fedddpm_app.launch.flower_run import COMPLETED, FlowerRun, to_toml
from fedddpm_app.launch.simulation import SimulationRun
from tests.conftest import ROOT, TINY, RunDirectory

MARK = "FEDDDPM_TEST_FOLDER"
pytestmark = pytest.mark.timeout(420)


def command(*arguments, **overrides):
    settings = TINY | {"node-timeout": 150.0} | {k.replace("_", "-"): v for k, v in overrides.items()}
    start = [sys.executable, "-m", "fedddpm_app.cli", "run", "--app", str(ROOT)]
    return [*start, "--run-config", to_toml(settings), *arguments]


def fedddpm_run(cwd, *arguments, **overrides):
    arguments = command(*arguments, **overrides)
    return subprocess.run(arguments, cwd=cwd, env=marked(cwd), capture_output=True, text=True, timeout=400, check=False)


def marked(cwd):
    """An environment by which a test knows the processes that it started, also through others."""
    return os.environ | {MARK: str(cwd)}


@pytest.mark.slow
def test_fedddpm_run_completes_and_equals_the_inprocess_engine(tmp_path, shared_run):
    measured = {"eval_images": 12, "eval_final_images": 20}
    done = fedddpm_run(tmp_path, output_dir="out", run_name="sim", **measured)
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunDirectory(tmp_path / "out" / "sim")
    assert run.summary["status"] == "completed"
    assert f"run directory: {run.path}" in done.stdout
    assert "round 2/2 train" in done.stdout
    assert "pretrain" in done.stdout
    assert (run.path / "log.txt").stat().st_size > 0
    assert "round 2: fd-classifier" in done.stdout
    assert "round 2: train-loss" not in done.stdout  # FedDDPM+ decides; see below
    inprocess = shared_run(**measured)
    assert run.losses() == inprocess.losses()
    assert run.summary["metrics"] == inprocess.summary["metrics"]
    assert not left_behind(tmp_path)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("algorithm", ["feddiffuse", "scaffold", "moon"])
def test_algorithms_with_state_equal_the_inprocess_engine(tmp_path, shared_run, algorithm):
    """Client state goes through files and Ray's contexts; with one actor and another seed as with several."""
    settings = {"algorithm": algorithm} | ({"seed": 1} if algorithm == "moon" else {})
    actors = ("--federation-config", "init-args-num-cpus=1") if algorithm == "moon" else ()
    done = fedddpm_run(tmp_path, *actors, output_dir="out", run_name="sim", **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunDirectory(tmp_path / "out" / "sim")
    assert run.losses() == shared_run(**settings).losses()
    if algorithm == "moon":
        worked = re.findall(r"ClientAppActor pid=\d+", (run.path / "log.txt").read_text())
        assert len(set(worked)) == 1
        assert run.losses() != shared_run(algorithm=algorithm).losses()


@pytest.mark.long
@pytest.mark.slow
def test_models_that_generate_together_equal_the_inprocess_engine(tmp_path, shared_run):
    settings = {"algorithm": "mixture", "eval_final_images": 30}
    done = fedddpm_run(tmp_path, output_dir="out", run_name="sim", **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    run, inprocess = RunDirectory(tmp_path / "out" / "sim"), shared_run(**settings)
    assert run.losses() == inprocess.losses()
    assert run.summary["metrics"] == inprocess.summary["metrics"]


@pytest.mark.long
@pytest.mark.slow
def test_peers_of_different_speed_equal_the_inprocess_engine(tmp_path, shared_run):
    """Trainings and votes are under way at the same time, in several processes; the ledger is the same."""
    settings = {"algorithm": "pdfed", "pdfed_samples": 20, "pdfed_validators": 1, "pdfed_speed_spread": 4.0}
    done = fedddpm_run(tmp_path, output_dir="out", run_name="sim", **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    run, here = RunDirectory(tmp_path / "out" / "sim"), shared_run(**settings)
    assert run.losses() == here.losses()
    assert (run.path / "ledger.jsonl").read_bytes() == (here.path / "ledger.jsonl").read_bytes()
    for key in ("comm/up_mb", "comm/down_mb", "compute/steps"):
        assert run.summary[key] == here.summary[key]


@pytest.mark.long
@pytest.mark.slow
def test_edges_and_pruning_equal_the_inprocess_engine(tmp_path, shared_run):
    """Each client gets the model of its edge, and after the second round the small model, in processes of their own."""
    settings = {"algorithm": "fedphd", "unet_channels": "16,16", "num_rounds": 4, "cloud_every": 3, "prune_round": 2}
    done = fedddpm_run(tmp_path, output_dir="out", run_name="sim", **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 2: pruned from" in done.stdout
    assert "every layer lost 25.0% of its channels" in done.stdout
    assert "every client reveals to the server how many images of each class it has" in done.stdout
    run, here = RunDirectory(tmp_path / "out" / "sim"), shared_run(**settings)
    assert run.losses() == here.losses()
    assert [row.get("edge/of_client") for row in run.rounds()] == [row.get("edge/of_client") for row in here.rounds()]
    (first,), (second,) = ([row for row in r.stats if row["phase"] == "prune"] for r in (run, here))
    same = [key for key in first if key.startswith("prune/")]
    assert {key: first[key] for key in same} == {key: second[key] for key in same}
    pipelines = [DDPMPipeline.from_pretrained(r.path / "pipeline").unet.state_dict() for r in (run, here)]
    assert all(torch.equal(tensor, pipelines[1][name]) for name, tensor in pipelines[0].items())
    assert sum(tensor.numel() for tensor in pipelines[0].values()) == first["prune/parameters"]


@pytest.mark.long
@pytest.mark.slow
def test_masked_updates_equal_the_inprocess_engine(tmp_path, shared_run):
    """A client's four messages go to several processes; its secrets travel in Flower's context. The masks cancel.

    Before, each client generates its part of D_aux in an actor, and its own model stays there.
    """
    settings = {"secure_aggregation": True, "max_update_norm": "", "auxiliary_sharing": "images"}
    done = fedddpm_run(tmp_path, output_dir="out", run_name="sim", **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    run, here = RunDirectory(tmp_path / "out" / "sim"), shared_run(**settings)
    assert run.losses() == here.losses()
    models = [(r.path / "checkpoints" / "round-0002" / "model.safetensors").read_bytes() for r in (run, here)]
    assert models[0] == models[1]
    assert not any("train/left_out" in row for row in run.rounds())
    sets = [load_from_disk(str(each.path / "auxiliary" / "dataset")) for each in (run, here)]
    assert [image.tobytes() for image in sets[0]["image"]] == [image.tobytes() for image in sets[1]["image"]]
    assert set(sets[0]["client"]) == {0, 1, 2, 3}


@pytest.mark.long
@pytest.mark.slow
def test_decisions_and_images_drawn_by_the_actors_equal_the_inprocess_engine(tmp_path, shared_run):
    """Decisions go through the log to the terminal; the actors' images are the server's, bit for bit."""
    settings = {"algorithm": "fedddpm-plus", "plus_threshold": 1e9, "auxiliary_size": 30, "auxiliary_batch_size": 3}
    done = fedddpm_run(tmp_path, output_dir="out", run_name="sim", auxiliary_generation="nodes", **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 2: train-loss" in done.stdout
    run, here = RunDirectory(tmp_path / "out" / "sim"), shared_run(**settings)
    assert run.losses() == here.losses()
    drawn, expected = (load_from_disk(str(r.path / "auxiliary" / "dataset")) for r in (run, here))
    assert [image.tobytes() for image in drawn["image"]] == [image.tobytes() for image in expected["image"]]
    assert "the server generates" not in (run.path / "log.txt").read_text()


@pytest.mark.slow
def test_a_terminated_run_stops_everything_and_says_so(tmp_path):
    """SIGTERM, as a job scheduler or `timeout` sends it, in the middle of pretraining."""
    one_actor = ("--federation-config", "init-args-num-cpus=1")
    arguments = command(*one_actor, output_dir="out", run_name="sim", pretrain_steps=100_000)
    with subprocess.Popen(
        arguments, cwd=tmp_path, env=marked(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            if "pretrain" in line:
                started = started_in(tmp_path)
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stdout.read()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert any("ray::" in " ".join(names) for names in started.values())
    _, alive = psutil.wait_procs(started, timeout=1)
    assert not {started[p] for p in alive if p.status() != psutil.STATUS_ZOMBIE}
    assert not left_behind(tmp_path)
    directory = tmp_path / "out" / "sim"
    assert f"interrupted; run directory: {directory}" in rest
    assert json.loads((directory / "summary.json").read_text())["status"] == "interrupted"
    assert "phase=pretrain" in (directory / "log.txt").read_text()


@pytest.mark.slow
def test_flower_itself_reports_failure_and_the_exit_code_follows(tmp_path):
    done = fedddpm_run(
        tmp_path, "--federation-config", "num-supernodes=3", output_dir="out", run_name="sim", node_timeout=3.0
    )
    assert done.returncode == 1
    assert "num-clients = 4, but" in done.stdout
    assert "finished:failed" in done.stdout


EXAMPLES = {
    "examples.l1_proximal:L1Proximal": "strength=0.01",
    "examples.correct_early:CorrectEarly": "",
    "examples.loss_weighted:LossWeighted": "q=4",
}


@pytest.mark.long
@pytest.mark.slow
def test_the_examples_run_with_plain_flwr_run_and_land_where_it_was_called_from(tmp_path, shared_run):
    """Algorithms from outside the package, as in docs/subclassing.md, one after the other on one SuperLink.

    A relative output-dir follows the caller, though the SuperLink was started elsewhere.
    """
    federation = {"num-supernodes": 4, "client-resources-num-cpus": 1}
    with SimulationRun(ROOT, {}, federation) as home:
        for algorithm, options in EXAMPLES.items():
            folder = tmp_path / algorithm.partition(":")[2]
            folder.mkdir()
            own = {"algorithm": algorithm, "algorithm-options": options, "num-rounds": 1}
            places = {"output-dir": "out", "run-name": "r", "node-timeout": 60.0}
            flower = FlowerRun(ROOT, TINY | own | places, federation)
            flower.environment = home.environment
            with contextlib.chdir(folder):
                output = list(flower.lines())
            assert flower.status() == COMPLETED, "\n".join(output)
            run = RunDirectory(folder / "out" / "r")
            assert run.summary["status"] == "completed"
            inprocess = shared_run(**{key.replace("-", "_"): value for key, value in own.items()})
            assert run.losses() == inprocess.losses()
            answers = [row.get("weighting/factors") for row in run.rounds()]
            assert answers == [row.get("weighting/factors") for row in inprocess.rounds()]


def started_in(cwd):
    """Processes that the test in ``cwd`` started, also through others, and their command lines.

    Ray's agents overwrite their environment: they are found as children.
    """
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(cwd):
                for each in (process, *process.children(recursive=True)):
                    found[each] = tuple(each.cmdline())
    return found


def left_behind(cwd):
    """What a run of the test in ``cwd`` started and did not stop."""
    time.sleep(0.5)
    return list(started_in(cwd).values())
