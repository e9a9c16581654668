"""The mixture control: the clients' pretrained models generate the images together, and nothing is federated."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from typer.testing import CliRunner

from fedddpm_app.algorithms.mixture import Mixture
from fedddpm_app.apportion import Shares
from fedddpm_app.cli import app
from fedddpm_app.config import ConfigError, load_config
from fedddpm_app.diffusion.ensemble import Ensemble, find_ensembles, in_order
from fedddpm_app.diffusion.objective import create_noise_scheduler
from fedddpm_app.diffusion.sampling import image_seeds, sample_images
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.evaluation.denoising import denoising_loss
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.recording.auxiliary_set import load_auxiliary_set
from fedddpm_app.weights import snapshot
from tests.algorithms.problems import CLIENTS, gradient, gradient_steps, run, same, shares, start
from tests.compare.test_plan import plan

MEASURED = {"algorithm": "mixture", "eval_images": 20, "eval_final_images": 30}


def test_its_final_weights_are_the_mean_of_models_that_are_trained_alone():
    alone = [gradient_steps(start(), 7, 0.1, lambda x, c=c: gradient(c, x)) for c in CLIENTS]
    expected = shares(CLIENTS) @ np.stack(alone)
    for rounds in (1, 3):
        ended = run("mixture", rounds=rounds, pretrain_steps=7, pretrain_learning_rate=0.1)
        assert same(ended, expected, 1e-12)


def test_it_pretrains_once_and_sends_nothing_in_the_rounds(shared_run):
    control, method = shared_run(algorithm="mixture"), shared_run(algorithm="fedddpm")
    assert control.phases() == ["pretrain", "initial", "round", "round"]
    (pretraining,) = (row for row in control.stats if row["phase"] == "pretrain")
    (same_phase,) = (row for row in method.stats if row["phase"] == "pretrain")
    for key in ("comm/up_mb", "comm/down_mb", "compute/steps", "pretrain/client_loss"):
        assert pretraining[key] == same_phase[key]
    assert control.summary["compute/steps"] == 4 * 3
    for row in control.rounds():
        assert (row["comm/up_mb"], row["comm/down_mb"], row["compute/steps"]) == (0, 0, 0)
        assert "client-eval/loss" not in row
    assert not (control.path / "unfinished").exists()


def test_with_the_seeds_of_fedddpms_auxiliary_set_its_models_generate_that_set(shared_run, run_config):
    """D_aux and the mixture are the same distribution, image by image: shares, models and sampler."""
    path = shared_run(algorithm="fedddpm").path
    stored, clients, _ = load_auxiliary_set(path / "auxiliary")
    config = load_config(run_config)
    ensemble = find_ensembles(shared_run(algorithm="mixture").path)[""]
    parts = ensemble.shares.assign(len(stored))
    assert [number for number, part in parts.items() for _ in part] == clients
    for number, part in parts.items():
        pipeline = DDPMPipeline.from_pretrained(ensemble.folders[number])
        images = sample_images(
            pipeline.unet,
            pipeline.scheduler,
            sampler=config.auxiliary.sampler,
            steps=config.auxiliary.sampler_steps,
            seeds=image_seeds(0, "auxiliary", len(part), number),
            shape=(1, 8, 8),
        )
        assert torch.equal(images, stored.images[part])


@pytest.mark.slow
def test_metrics_sheets_and_pipelines(shared_run):
    """One set of metrics and one sheet of all models together, and one pipeline for each model."""
    run = shared_run(**MEASURED)
    for metric in run.summary["metrics"]:
        assert metric["weights"] == "pretrained"
        assert "clients" not in metric
    names = {metric["name"]: metric for metric in run.summary["metrics"]}
    assert names["memorized-share"]["n"] == names["fd-classifier"]["n"] == 30
    assert names["memorized-share"]["reference_n"] == sum(run.stats[0]["data/num_examples"])
    assert [path.name for path in (run.path / "samples").glob("round-0002*")] == ["round-0002.png"]
    folders = [f"client-{k:04d}" for k in range(4)]
    assert sorted(path.name for path in (run.path / "pipeline").iterdir() if path.is_dir()) == folders
    assert run.summary["images/evaluation"] == 2 * 20 + 30


@pytest.mark.slow
def test_the_loss_is_the_mean_over_the_models_by_their_shares(shared_run, run_config):
    run, task = shared_run(**MEASURED), DiffusionTask(load_config(run_config))
    ensemble, data = find_ensembles(run.path)[""], task.data.test.without_labels()
    models = {k: DDPMPipeline.from_pretrained(folder).unet for k, folder in ensemble.folders.items()}
    losses = [denoising_loss(models[k], task.loss_fn, data, 1) for k in ensemble.shares.num_examples]
    sizes = run.stats[0]["data/num_examples"]
    assert [*ensemble.shares.num_examples.values()] == sizes
    assert run.rounds()[-1]["eval/loss"] == pytest.approx(np.average(losses, weights=sizes), rel=1e-6)


def test_commands_generate_and_measure_the_mixture(shared_run, tmp_path):
    run = shared_run(**MEASURED)
    out = tmp_path / "evaluation.json"
    result = CliRunner().invoke(app, ["evaluate", str(run.path), "--num-images", "30", "--out", str(out)])
    assert result.exit_code == 0, result.output
    at_the_end = {metric["name"]: metric["value"] for metric in run.summary["metrics"]}
    for metric in json.loads(out.read_text())["metrics"]:
        assert metric["value"] == pytest.approx(at_the_end[metric["name"]], rel=1e-6)
        assert metric["weights"] == "pretrained"
    sheet = tmp_path / "sheet.png"
    options = ["--num-images", "6", "--steps", "2", "--out", str(sheet)]
    assert CliRunner().invoke(app, ["sample", str(run.path), *options]).exit_code == 0
    assert sheet.exists()


def test_damaged_shares_are_one_sentence(shared_run, tmp_path):
    for name in ("client-0000", "client-0001"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model_index.json").write_text("{}")
    for content in ('{"num_examples": {"0": 3}, "label_counts": {}}', "[]", "{", '{"num_examples": {"0": 3, "1": 0}}'):
        (tmp_path / "shares.json").write_text(content)
        with pytest.raises(ConfigError, match=r"shares\.json does not fit the 2 pipelines beside it"):
            find_ensembles(tmp_path)


def test_shares_are_proportional_to_examples_and_among_a_class_to_its_examples():
    mixed = Shares({3: 60, 1: 30, 2: 10}, {1: [30, 0, 0], 2: [10, 0, 0], 3: [0, 60, 0]})
    assert {model: len(part) for model, part in mixed.assign(50).items()} == {1: 15, 2: 5, 3: 30}
    labels = torch.tensor([0] * 8 + [1] * 5 + [2] * 10)  # nobody has an image of class 2
    parts = mixed.assign(23, labels)
    assert {model: labels[part].bincount(minlength=3).tolist() for model, part in parts.items()} == {
        1: [6, 0, 3],
        2: [2, 0, 1],
        3: [0, 5, 6],
    }
    assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(23))
    assert 2 not in mixed.assign(2)
    alike = Shares(dict.fromkeys(range(10), 100), dict.fromkeys(range(10), [1] * 100))
    assert {len(part) for part in alike.assign(800, torch.arange(800) % 100).values()} == {80}
    again = Shares()
    again.load_state_dict(json.loads(json.dumps(mixed.state_dict())))
    assert again.state_dict() == mixed.state_dict()


def test_image_k_starts_from_seed_k_whichever_model_generates_it(config):
    model, scheduler = create_unet(config.unet, config.data, seed=0), create_noise_scheduler(config.diffusion)
    weights = {number: snapshot(create_unet(config.unet, config.data, seed=number)) for number in (0, 1)}
    options = {"sampler": "ddim", "steps": 2, "shape": (1, 8, 8), "seeds": image_seeds(0, "test", 6), "batch_size": 2}
    mixed = in_order(Ensemble(weights, Shares({0: 1, 1: 2})).sample(model, scheduler, **options))
    first, second = (in_order(Ensemble.of_one(weights[k]).sample(model, scheduler, **options)) for k in (0, 1))
    assert torch.equal(mixed, torch.cat([first[:2], second[2:]]))


def test_a_grid_at_equal_steps_gives_it_all_of_the_budget_as_pretraining():
    """4 clients take 96 steps in six rounds of fedavg, and 24 steps each in pretraining."""
    found = plan(rows={"fedavg": {}, "mixture": {"num-rounds": 1, "solve": "pretrain-steps"}}).settings[2]
    assert (found.solved, found.cost.steps) == ({"pretrain-steps": 24}, 96)
    assert (found.cost.models_up, found.cost.models_down) == (4, 4)


def test_a_warm_up_that_takes_all_of_pretraining_is_refused(run_config):
    with pytest.raises(ConfigError, match="is not below pretrain-steps = 3"):
        Mixture.check_config(load_config(run_config | {"algorithm": "mixture", "warmup-steps": 3, "local-steps": 9}))
