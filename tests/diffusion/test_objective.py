import dataclasses

import pytest
import torch
from torch import nn

from fedddpm_app.diffusion.images import ImageBatch
from fedddpm_app.diffusion.objective import DenoisingObjective, create_noise_scheduler

VARIANCE = 0.3


class OptimalGaussianPredictor(nn.Module):
    """The closed-form best predictor for data ~ N(0, VARIANCE): every conditional mean is linear in x_t.

    With a = sqrt(abar_t), s = sqrt(1 - abar_t) and v = a^2 VARIANCE + s^2: E[x | x_t] = a VARIANCE x_t / v,
    E[noise | x_t] = s x_t / v, and the velocity is a noise - s x.
    """

    def __init__(self, scheduler):
        super().__init__()
        self.kind = scheduler.config.prediction_type
        self.alphas_cumprod = scheduler.alphas_cumprod
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x_t, t, return_dict=False, class_labels=None):
        abar = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        a, s = abar.sqrt(), (1 - abar).sqrt()
        v = abar * VARIANCE + 1 - abar
        noise, x = s * x_t / v, a * VARIANCE * x_t / v
        return ({"epsilon": noise, "sample": x, "v_prediction": a * noise - s * x}[self.kind],)


def least_loss(scheduler, t):
    """The optimal predictor's loss at ``t``: the conditional variance of the target given x_t."""
    abar = scheduler.alphas_cumprod[t]
    v = abar * VARIANCE + 1 - abar
    kinds = {"epsilon": abar * VARIANCE / v, "sample": (1 - abar) * VARIANCE / v, "v_prediction": VARIANCE / v}
    return kinds[scheduler.config.prediction_type]


@pytest.fixture(params=["epsilon", "sample", "v_prediction"])
def objective(request, config):
    diffusion = dataclasses.replace(config.diffusion, prediction_type=request.param, diffusion_steps=100)
    return DenoisingObjective(create_noise_scheduler(diffusion))


def test_targets_recover_the_image(objective):
    """x_start follows from x_t and any target: the target and the scheduler agree."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4, 1, 3, 3, generator=generator, dtype=torch.float64) * 2 - 1
    noise = torch.randn(4, 1, 3, 3, generator=generator, dtype=torch.float64)
    t = torch.tensor([0, 10, 50, 99])
    abar = objective.scheduler.alphas_cumprod[t].double().view(-1, 1, 1, 1)  # 2e-7 at the last t
    x_t = abar.sqrt() * x + (1 - abar).sqrt() * noise
    assert torch.allclose(x_t, objective.scheduler.add_noise(x, noise, t), atol=1e-12)
    target = objective.target(x, noise, t)
    match objective.scheduler.config.prediction_type:
        case "epsilon":
            recovered = (x_t - (1 - abar).sqrt() * target) / abar.sqrt()
        case "sample":
            recovered = target
        case _:
            recovered = abar.sqrt() * x_t - (1 - abar).sqrt() * target
    assert torch.allclose(recovered, x, atol=1e-9)


def test_the_optimal_predictor_reaches_the_closed_form_loss(objective):
    """On Gaussian data the least possible loss is the conditional variance, known per t."""
    generator = torch.Generator().manual_seed(0)
    model = OptimalGaussianPredictor(objective.scheduler)
    x = torch.randn(4000, 1, 1, 1, generator=generator) * VARIANCE**0.5
    noise = torch.randn(4000, 1, 1, 1, generator=generator)
    for step in (3, 40, 90):
        t = torch.full((4000,), step)
        least = float(least_loss(objective.scheduler, step))
        assert float(objective.losses(model, ImageBatch(x, None), t, noise).mean()) == pytest.approx(least, rel=0.1)


def test_the_loss_is_repeatable_and_uses_every_timestep(objective):
    seen = []

    class Spy(OptimalGaussianPredictor):
        def forward(self, x_t, t, return_dict=False, class_labels=None):
            seen.append(t)
            return super().forward(x_t, t)

    batch = ImageBatch(torch.zeros(5000, 1, 1, 1), None)
    first, second = (objective(Spy(objective.scheduler), batch, torch.Generator().manual_seed(1)) for _ in range(2))
    assert first == second
    assert first.ndim == 0
    assert sorted(set(seen[0].tolist())) == list(range(100))


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_noise_grows_with_t(config, schedule):
    scheduler = create_noise_scheduler(dataclasses.replace(config.diffusion, beta_schedule=schedule))
    assert (scheduler.alphas_cumprod.diff() < 0).all()


def test_training_sees_mirrored_images_about_half_of_the_time_and_evaluation_none(config):
    """Images with one bright column on the left."""
    images = torch.full((2000, 1, 4, 4), -1.0)
    images[..., 0] = 1.0
    labels = torch.arange(2000)
    seen = []

    class Spy(DenoisingObjective):
        def losses(self, model, batch, t, noise):
            seen.append(batch)
            return torch.zeros(len(batch.images), requires_grad=True)

    objective = Spy(create_noise_scheduler(config.diffusion), horizontal_flip=True)
    model = torch.nn.Identity()
    objective(model.train(), ImageBatch(images, labels), torch.Generator().manual_seed(0))
    objective(model.eval(), ImageBatch(images, labels), torch.Generator().manual_seed(0))
    flipped = seen[0].images[:, 0, 0, 3] == 1.0
    assert torch.equal(seen[0].images[flipped], images[flipped].flip(-1))
    assert torch.equal(seen[0].images[~flipped], images[~flipped])
    assert abs(int(flipped.sum()) - 1000) < 5 * 500**0.5  # five standard deviations of 2000 fair coins
    assert torch.equal(seen[0].labels, labels)
    assert torch.equal(seen[1].images, images)
