"""The global model while it trains: EMA over the rounds, what is evaluated, what is kept."""

import itertools

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file

from fedddpm_app.config import load_config
from fedddpm_app.data.dataset import open_dataset
from fedddpm_app.diffusion.objective import DenoisingObjective, create_noise_scheduler
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.evaluation.denoising import denoising_loss
from fedddpm_app.weights import load_into, snapshot
from tests.data.conftest import client_images


def loss_of(config, weights, data):
    model = create_unet(config.unet, config.data, seed=9)
    load_into(model, weights)
    objective = DenoisingObjective(create_noise_scheduler(config.diffusion))
    return denoising_loss(model, objective, data.without_labels(), config.evaluation.eval_draws)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("warmup", "decays"),
    [(0.0, [0.0, 0.9, 0.9, 0.9]), (2.0, [0.0, 1 / 3, 2 / 4, 3 / 5])],
)
def test_ema_evaluation_checkpoints_and_pipeline_belong_together(run_app, run_config, warmup, decays):
    """EMA: e_1 = w_1, e_r = d_r e_(r-1) + (1 - d_r) w_r, with d_r = 0.9, or at most n / (2 + n) for n = r - 1."""
    run = run_app(num_rounds=4, checkpoint_every=1, server_ema_decay=0.9, ema_warmup=warmup)
    config = load_config(run_config)
    test_data = open_dataset(config.data, 0).test
    ema = None
    for server_round, row in zip(itertools.count(1), run.rounds(), strict=False):
        folder = run.path / "checkpoints" / f"round-{server_round:04d}"
        raw, stored = load_file(folder / "model.safetensors"), load_file(folder / "ema.safetensors")
        decay = decays[server_round - 1]
        ema = raw if ema is None else {k: decay * ema[k] + (1 - decay) * raw[k] for k in raw}
        assert all(torch.allclose(stored[k], ema[k], atol=1e-6) for k in ema)
        assert row["eval/loss"] == pytest.approx(loss_of(config, raw, test_data), abs=1e-9)
        assert row["eval/ema_loss"] == pytest.approx(loss_of(config, stored, test_data), abs=1e-9)
        if server_round > 1:
            assert row["eval/loss"] != row["eval/ema_loss"]
    pipeline = snapshot(UNet2DModel.from_pretrained(run.path / "pipeline" / "unet"))
    assert all(torch.equal(pipeline[k], stored[k]) for k in stored)


def test_clients_evaluate_the_global_model_on_their_held_out_images(shared_run, run_config):
    run = shared_run(num_rounds=1)
    config = load_config(run_config)
    weights = load_file(run.path / "checkpoints" / "round-0001" / "model.safetensors")
    held_out = [client_images(config.data, 0, k).held_out for k in range(4)]
    total = sum(loss_of(config, weights, data) * len(data) for data in held_out)
    expected = total / sum(len(data) for data in held_out)
    assert run.rounds()[0]["client-eval/loss"] == pytest.approx(expected, rel=1e-6)
