"""The local-only control: every client alone, over rounds, and metrics that are means over the clients' models."""

import json
from collections import Counter

import pytest
import torch
from diffusers import DDPMPipeline

import client_app
from fedddpm_app.algorithms.local_only import LocalOnly, LocalOnlyHook
from fedddpm_app.config import load_config
from fedddpm_app.diffusion.objective import DenoisingObjective, create_noise_scheduler
from fedddpm_app.evaluation.denoising import denoising_loss
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.federation.messages.records import to_arrays
from fedddpm_app.federation.nodes.participants import Participants
from fedddpm_app.inprocess.grid import InProcessGrid
from fedddpm_app.recording.recorder import RunRecorder
from fedddpm_app.weights import load_into, snapshot
from tests.algorithms.problems import (
    CLIENTS,
    RATE,
    ROUNDS,
    STEPS,
    caught,
    gradient,
    gradient_steps,
    make_clients,
    run,
    same,
    shares,
    start,
)
from tests.data.conftest import client_images


def check_reference(algorithm):
    alone = [gradient_steps(start(), ROUNDS * STEPS, RATE, lambda x, c=c: gradient(c, x)) for c in CLIENTS]
    assert same(run(algorithm), sum(p * x for p, x in zip(shares(CLIENTS), alone, strict=True)), 1e-12)


def test_every_client_goes_on_from_its_own_model():
    check_reference("local-only")


def test_starting_from_the_mean_is_caught():
    class Shares(LocalOnlyHook):
        def start_weights(self):
            return self.round.global_weights

    class Mutant(LocalOnly):
        hook = Shares

    assert caught(check_reference, Mutant)


def test_clients_that_come_late_start_from_the_initial_weights():
    """And what it ends with is the mean over all that ever trained, as far as each came."""
    clients = make_clients(3, 5, 2, 4)
    participants = Participants({i: i for i in range(4)})
    rounds_of = Counter(i for r in range(1, 4) for i in participants.sample(2, 0, r))
    assert len(set(rounds_of.values())) > 1
    models = {
        i: gradient_steps(start(), count * STEPS, RATE, lambda x, i=i: gradient(clients[i], x))
        for i, count in rounds_of.items()
    }
    sizes = {i: len(clients[i][0]) for i in models}
    expected = sum(sizes[i] * models[i] for i in models) / sum(sizes.values())
    assert same(run("local-only", clients, clients_per_round=2), expected, 1e-12)


def test_metrics_are_means_over_the_clients_models(run_config, tmp_path):
    run_config["algorithm"] = "local-only"
    config = load_config(run_config)
    task = DiffusionTask(config)
    strategy = LocalOnly(config, RunRecorder(tmp_path / "strategy"), task)
    grid = InProcessGrid(client_app.app, 4, run_config)
    strategy.start(grid, to_arrays(snapshot(task.create_model())), num_rounds=2)
    assert sorted(strategy.client_models) == [0, 1, 2, 3]
    model, objective = task.create_model(), DenoisingObjective(create_noise_scheduler(config.diffusion))
    losses = []
    for partition, weights in strategy.client_models.items():
        load_into(model, weights)
        held_out = client_images(config.data, config.run.seed, partition).held_out.without_labels()
        losses.append((denoising_loss(model, objective, held_out, config.evaluation.eval_draws), len(held_out)))
    expected = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
    assert strategy.recorder.stats[-1]["client-eval/loss"] == pytest.approx(expected, rel=1e-6)


def test_pictures_checkpoints_and_pipelines_are_one_per_client(shared_run):
    run = shared_run(algorithm="local-only")
    names = [f"client-{k:04d}" for k in range(4)]
    sheets = [f"round-0002-{name}" for name in (*names, "clients")]
    assert sorted(p.stem for p in (run.path / "samples").glob("round-0002*")) == sheets
    assert sorted(p.name for p in (run.path / "checkpoints" / "round-0002").iterdir() if p.is_dir()) == names
    pipelines = [DDPMPipeline.from_pretrained(run.path / "pipeline" / name) for name in names]
    first, second = (next(iter(p.unet.parameters())) for p in pipelines[:2])
    assert not torch.equal(first, second)
    assert json.loads((run.path / "summary.json").read_text())["status"] == "completed"
