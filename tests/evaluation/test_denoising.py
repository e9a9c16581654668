import dataclasses

import pytest
import torch

from fedddpm_app.diffusion.images import ImageBatch, ImageTensors
from fedddpm_app.diffusion.objective import DenoisingObjective, create_noise_scheduler
from fedddpm_app.evaluation.denoising import band_edges, banded_denoising_loss, denoising_loss
from tests.diffusion.test_objective import VARIANCE, OptimalGaussianPredictor, least_loss


class Pixels:
    """One-pixel images that need not be whole numbers."""

    device = torch.device("cpu")

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def batch(self, index):
        return ImageBatch(self.values[index], None)


@pytest.fixture(params=["epsilon", "sample", "v_prediction"])
def objective(request, config):
    diffusion = dataclasses.replace(config.diffusion, prediction_type=request.param, diffusion_steps=100)
    return DenoisingObjective(create_noise_scheduler(diffusion))


def test_the_optimal_predictors_loss_is_its_closed_form_over_all_timesteps(objective):
    values = torch.randn(4000, 1, 1, 1, generator=torch.Generator().manual_seed(0)) * VARIANCE**0.5
    model = OptimalGaussianPredictor(objective.scheduler)
    expected = float(least_loss(objective.scheduler, torch.arange(100)).mean())
    loss = denoising_loss(model, objective, Pixels(values), draws=4)
    assert loss == pytest.approx(expected, rel=0.05)
    assert loss == denoising_loss(model, objective, Pixels(values), draws=4)  # t and noise are fixed


@pytest.mark.parametrize("draws", [1, 5])
def test_t_is_spread_evenly_over_an_images_draws(config, draws):
    objective = DenoisingObjective(create_noise_scheduler(config.diffusion))  # T = 50
    seen = []

    class Spy(OptimalGaussianPredictor):
        def forward(self, x_t, t, return_dict=False, class_labels=None):
            seen.append(t)
            return super().forward(x_t, t)

    denoising_loss(Spy(objective.scheduler), objective, Pixels(torch.zeros(200, 1, 1, 1)), draws)
    for draw, t in enumerate(seen):
        assert int(t.min()) >= draw * 50 // draws
        assert int(t.max()) < (draw + 1) * 50 // draws
    assert set(torch.cat(seen).tolist()) == set(range(50))


def test_the_models_mode_is_kept_and_no_data_give_nan(config):
    objective = DenoisingObjective(create_noise_scheduler(config.diffusion))
    model = OptimalGaussianPredictor(objective.scheduler)
    data = ImageTensors(torch.zeros(3, 1, 2, 2, dtype=torch.uint8))
    for training in (True, False):
        model.train(training)
        assert denoising_loss(model, objective, data, 1) > 0
        assert model.training is training
    assert torch.tensor(denoising_loss(model, objective, ImageTensors(data.images[:0]), 1)).isnan()


def test_bands_are_the_means_over_quarters_of_the_timesteps():
    """An objective whose loss is t itself: each band's mean lies in its edges, and their average is the mean."""

    class Timestep:
        num_timesteps = 50

        def losses(self, model, batch, t, noise):
            return t.float()

    found = banded_denoising_loss(torch.nn.Identity(), Timestep(), Pixels(torch.zeros(400, 1, 1, 1)), draws=8)
    assert band_edges(50) == [(0, 12), (13, 24), (25, 37), (38, 49)]
    for (first, last), mean in zip(band_edges(50), found.bands, strict=True):
        assert first <= mean <= last
        assert mean == pytest.approx((first + last) / 2, abs=0.5)
    assert found.mean == pytest.approx(24.5, abs=0.5)
