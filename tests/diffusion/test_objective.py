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


def loss_of_error(scheduler, kind, t, error, weighting="sigmoid-log-snr", loss="mse"):
    """The loss of a network whose implied noise differs by ``error`` from the true one, and its gradient by ``error``.

    With a = sqrt(abar_t), s = sqrt(1 - abar_t): the image is (x_t - s noise) / a, and the velocity (noise - s x_t) / a.
    """
    scheduler.register_to_config(prediction_type=kind)
    generator = torch.Generator().manual_seed(3)
    shape = error.shape
    x, noise = torch.rand(shape, generator=generator) * 2 - 1, torch.randn(shape, generator=generator)
    error = error.clone().requires_grad_()

    def network(x_t, t, return_dict=False):
        abar = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        a, s = abar.sqrt(), (1 - abar).sqrt()
        implied = noise + error
        return ({"epsilon": implied, "sample": (x_t - s * implied) / a, "v_prediction": (implied - s * x_t) / a}[kind],)

    objective = DenoisingObjective(scheduler, loss=loss, weighting=weighting)
    losses = objective.losses(network, ImageBatch(x, None), t, noise)
    losses.sum().backward()
    return losses.detach(), error.grad


def test_the_weight_makes_the_loss_that_of_the_noise_for_every_prediction_type(config):
    """Tun et al.: sigmoid(log-SNR) times the loss of the velocity, here for errors of 0.1 to 1.6 at five timesteps."""
    diffusion = dataclasses.replace(config.diffusion, diffusion_steps=100, beta_schedule="linear", beta_end=0.2)
    scheduler = create_noise_scheduler(diffusion)
    t, error = torch.tensor([1, 10, 40, 70, 99]), torch.linspace(0.1, 1.6, 5 * 8).view(5, 2, 2, 2)
    for kind in ("epsilon", "v_prediction", "sample"):
        losses, gradient = loss_of_error(scheduler, kind, t, error)
        assert torch.allclose(losses, error.square().flatten(1).mean(1), rtol=1e-3), kind
        assert torch.allclose(gradient, 2 * error / 8, rtol=1e-3), kind
    abar = scheduler.alphas_cumprod[t]
    objective = DenoisingObjective(scheduler, weighting="sigmoid-log-snr")
    weights = {"epsilon": None, "v_prediction": torch.sigmoid(torch.logit(abar)), "sample": torch.logit(abar).exp()}
    for kind, weight in weights.items():
        scheduler.register_to_config(prediction_type=kind)
        found = objective.weight(t)
        assert (found is None) == (weight is None)
        assert weight is None or torch.allclose(found, weight, rtol=1e-5)


def test_the_unweighted_losses_of_the_types_differ_by_the_weights(config):
    scheduler = create_noise_scheduler(dataclasses.replace(config.diffusion, diffusion_steps=100))
    t, error = torch.tensor([5, 50, 80]), torch.full((3, 1, 2, 2), 0.3)
    abar = scheduler.alphas_cumprod[t]
    velocity, image = (loss_of_error(scheduler, kind, t, error, "none")[0] for kind in ("v_prediction", "sample"))
    assert torch.allclose(velocity, 0.09 / abar, rtol=1e-3)
    assert torch.allclose(image, 0.09 * (1 - abar) / abar, rtol=1e-3)


def test_the_huber_loss_and_its_gradient_are_the_closed_form(config):
    """e^2 / 2 and e up to 1, |e| - 1/2 and the sign of e above."""
    scheduler = create_noise_scheduler(config.diffusion)
    error = torch.tensor([-3.0, -1.0, -0.5, 0.0, 0.25, 1.0, 1.5, 7.0]).view(1, 2, 2, 2)
    losses, gradient = loss_of_error(scheduler, "epsilon", torch.tensor([20]), error, "none", "huber")
    size = error.abs()
    expected = torch.where(size <= 1, error**2 / 2, size - 0.5).mean()
    assert float(losses) == pytest.approx(float(expected), rel=1e-6)
    assert torch.allclose(gradient, error.clamp(-1, 1) / 8, atol=1e-6)
