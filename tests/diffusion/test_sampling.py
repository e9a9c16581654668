import dataclasses
import itertools

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from fedddpm_app.diffusion.images import ImageTensors, concatenate, to_uint8, to_unit_range
from fedddpm_app.diffusion.objective import create_noise_scheduler
from fedddpm_app.diffusion.sampling import SAMPLERS, create_sampler, image_seeds, sample_images, set_timesteps
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.weights import snapshot
from tests.diffusion.test_objective import VARIANCE, OptimalGaussianPredictor


@pytest.fixture
def model(config):
    return create_unet(config.unet, config.data, seed=0)


def draw(model, config, sampler="ddpm", seeds=None, **options):
    scheduler = create_noise_scheduler(config.diffusion)
    return sample_images(
        model,
        scheduler,
        sampler=sampler,
        steps=5,
        seeds=image_seeds(0, "test", 7) if seeds is None else seeds,
        shape=(1, 8, 8),
        **options,
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_k_depends_on_its_own_seed_alone(model, config, sampler):
    seeds = image_seeds(0, "test", 7)
    together = draw(model, config, sampler, seeds, batch_size=3)
    backwards = draw(model, config, sampler, seeds[::-1], batch_size=3).flip(0)
    alone = draw(model, config, sampler, [seeds[4], seeds[0], seeds[1]], batch_size=3)
    assert together.shape == (7, 1, 8, 8)
    assert together.dtype == torch.uint8
    assert torch.equal(together, backwards)
    assert torch.equal(together[4], alone[0])
    assert not torch.equal(together[0], together[1])
    one_by_one = draw(model, config, sampler, seeds, batch_size=1)  # another batch shape: equal to rounding
    assert (one_by_one.int() - together.int()).abs().max() <= 1


def gaussian_scheduler(config, **changes):
    diffusion = dataclasses.replace(
        config.diffusion, **{"diffusion_steps": 100, "beta_schedule": "squaredcos_cap_v2"} | changes
    )
    scheduler = create_noise_scheduler(diffusion)
    scheduler.register_to_config(clip_sample=False)
    return scheduler


def ddpm_variance(scheduler, steps):
    """Variance that ancestral sampling reaches on Gaussian data with the exact model: Ho et al. 2020, eq. 6 and 7.

    It is below the data's, since the posterior variance beta~ of eq. 7 is that of a single image.
    """
    variance = 1.0
    grid = [99 - k * 100 // steps for k in range(steps)]
    for t, previous in itertools.pairwise([*grid, -1]):
        abar = float(scheduler.alphas_cumprod[t])
        abar_previous = float(scheduler.alphas_cumprod[previous]) if previous >= 0 else 1.0
        alpha = abar / abar_previous
        x_start = abar**0.5 * VARIANCE / (abar * VARIANCE + 1 - abar)  # E[x_0 | x_t] = x_start * x_t
        mean = abar_previous**0.5 * (1 - alpha) / (1 - abar) * x_start
        mean += alpha**0.5 * (1 - abar_previous) / (1 - abar)
        variance = mean**2 * variance + (1 - abar_previous) / (1 - abar) * (1 - alpha)
    return variance


def check_gaussian(scheduler, sampler, steps, eta=0.0):
    """1-D Gaussian data: exact model in, right mean and variance out."""
    images = sample_images(
        OptimalGaussianPredictor(scheduler),
        scheduler,
        sampler=sampler,
        steps=steps,
        seeds=image_seeds(0, "gaussian", 1500),
        shape=(1, 1, 1),
        batch_size=1500,
        eta=eta,
    )
    values = to_unit_range(images).flatten()
    variance = ddpm_variance(scheduler, steps) if sampler == "ddpm" or eta == 1 else VARIANCE
    expected = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).mul(variance**0.5).clamp(-1, 1)
    assert variance == pytest.approx(VARIANCE, rel=0.2)
    assert float(values.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(values.std()) == pytest.approx(float(expected.std()), rel=0.06)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_sampling_with_the_optimal_predictor_gives_the_data_distribution(config, sampler, prediction_type):
    scheduler = gaussian_scheduler(config, prediction_type=prediction_type)
    check_gaussian(scheduler, sampler, 100 if sampler == "ddpm" else 50)


@pytest.mark.parametrize(
    ("sampler", "steps"),
    [
        ("ddim", 50),
        ("ddim", 100),
        *((s, n) for s in ("ddpm", "dpm-solver++") for n in (67, 75, 99)),
        ("dpm-solver++", 29),
    ],
)
@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "linear"])
def test_it_does_so_for_any_number_of_steps(config, sampler, steps, schedule):
    end = {"linear": 0.2}.get(schedule, 0.02)  # T = 100 needs larger betas to end in pure noise
    check_gaussian(gaussian_scheduler(config, beta_schedule=schedule, beta_end=end), sampler, steps)


@pytest.mark.parametrize("steps", [50, 100])
def test_ddim_with_the_noise_of_ancestral_sampling_has_its_distribution(config, steps):
    check_gaussian(gaussian_scheduler(config, prediction_type="v_prediction"), "ddim", steps, eta=1.0)


@pytest.mark.parametrize("steps", [20, 100])
def test_ddim_with_eta_1_is_ancestral_sampling_image_by_image(config, steps):
    """Song et al. 2021, section 4.1; where nothing is clipped, and for the same noise."""
    scheduler = gaussian_scheduler(config, beta_schedule="linear", beta_end=0.2)
    about = {"steps": steps, "seeds": image_seeds(0, "test", 40), "shape": (1, 4, 4)}
    model = OptimalGaussianPredictor(scheduler)
    ancestral = sample_images(model, scheduler, sampler="ddpm", **about)
    noisy, half, plain = (sample_images(model, scheduler, sampler="ddim", eta=e, **about) for e in (1.0, 0.5, 0.0))
    assert (noisy.int() - ancestral.int()).abs().max() <= 1
    assert torch.equal(plain, sample_images(model, scheduler, sampler="ddim", **about))
    assert not torch.equal(plain, half)
    assert not torch.equal(half, noisy)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_the_noise_of_a_ddim_step_has_eta_times_the_ancestral_deviation(config, eta):
    """Ho et al. 2020, eq. 7: beta~_t = (1 - abar_(t-1)) / (1 - abar_t) beta_t, for t = 60 of 100 steps."""
    scheduler = gaussian_scheduler(config)
    sampler = create_sampler(scheduler, "ddim")
    set_timesteps(sampler, 100, torch.device("cpu"))
    x_t, output = torch.zeros(20_000, 1, 1, 1), torch.ones(20_000, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    after = sampler.step(output, 60, x_t, eta=eta, generator=generator, return_dict=False)[0]
    abar, before = (float(scheduler.alphas_cumprod[t]) for t in (60, 59))
    deviation = eta * ((1 - before) / (1 - abar) * (1 - abar / before)) ** 0.5
    assert float(after.std()) == pytest.approx(deviation, rel=0.02, abs=1e-7)


def test_with_noise_image_k_still_depends_on_its_own_seed_alone(model, config):
    seeds = image_seeds(0, "test", 6)
    together = draw(model, config, "ddim", seeds, batch_size=3, eta=1.0)
    assert torch.equal(together, draw(model, config, "ddim", seeds[::-1], batch_size=3, eta=1.0).flip(0))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_grid_falls_strictly_from_the_noisiest_timestep(config, sampler):
    for schedule in ("linear", "squaredcos_cap_v2"):
        scheduler = gaussian_scheduler(config, beta_schedule=schedule)
        half_log_snr = torch.logit(scheduler.alphas_cumprod.double()) / 2
        first = int((half_log_snr >= -5.1).sum()) - 1 if sampler == "dpm-solver++" else 99
        for steps in range(1, 101):
            reverse = create_sampler(scheduler, sampler)
            if sampler == "ddim" and 100 % steps:
                with pytest.raises(ValueError, match="does not divide"):
                    set_timesteps(reverse, steps, torch.device("cpu"))
                continue
            set_timesteps(reverse, steps, torch.device("cpu"))
            grid = reverse.timesteps.tolist()
            assert len(grid) == min(steps, first + 1)
            assert grid[0] == first
            assert grid[-1] >= 0
            gaps = [a - b for a, b in itertools.pairwise([*grid, -1])]
            assert min(gaps) >= 1
            assert max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_every_sampler_reverses_every_schedule(config, sampler, schedule):
    scheduler = create_noise_scheduler(dataclasses.replace(config.diffusion, beta_schedule=schedule))
    reverse = create_sampler(scheduler, sampler)
    assert torch.equal(reverse.alphas_cumprod, scheduler.alphas_cumprod)
    model, seeds = OptimalGaussianPredictor(scheduler), image_seeds(0, "test", 3)
    drawn = sample_images(model, scheduler, sampler=sampler, steps=5, seeds=seeds, shape=(1, 2, 2))
    assert drawn.unique().numel() > 3


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_autocast_draws_nearly_the_same_images(model, config, sampler):
    plain = draw(model, config, sampler)
    fast = draw(model, config, sampler, precision="bf16")
    assert not torch.equal(plain, fast)
    assert (fast.int() - plain.int()).abs().median() <= 2  # of 255; a few clipped pixels jump


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("steps", [1, 10, 20])
def test_the_clipping_solver_is_diffusers_own_bit_for_bit(model, config, schedule, steps):
    diffusion = dataclasses.replace(config.diffusion, beta_schedule=schedule)
    mine = create_sampler(create_noise_scheduler(diffusion), "dpm-solver++")
    theirs = DPMSolverMultistepScheduler.from_config(mine.config)
    assert theirs.config.thresholding
    start = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    finals = []
    for scheduler in (mine, theirs):
        set_timesteps(scheduler, steps, torch.device("cpu"))
        x = start
        for t in scheduler.timesteps:
            x = scheduler.step(3 * torch.tanh(x), t, x, return_dict=False)[0]
        finals.append(x)
    assert torch.equal(*finals)


def test_no_images_is_an_empty_set(model, config):
    assert draw(model, config, seeds=[]).shape == (0, 1, 8, 8)


def test_a_conditional_model_draws_by_label_and_keeps_its_mode(config):
    data = dataclasses.replace(config.data, class_conditional=True)
    model = create_unet(config.unet, data, seed=0)
    with torch.no_grad():
        model.class_embedding.weight.mul_(20)
    zeros = draw(model, config, labels=torch.zeros(7, dtype=torch.int64))
    mixed = draw(model, config, labels=torch.tensor([0, 0, 0, 1, 1, 1, 1]))
    assert torch.equal(zeros[:3], mixed[:3])
    assert not torch.equal(zeros[3:], mixed[3:])
    assert model.training


def test_initial_weights_follow_the_seed(config):
    first, again, other = (snapshot(create_unet(config.unet, config.data, seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_pixels_round_trip():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    unit = to_unit_range(values)
    assert (float(unit.min()), float(unit.max()), unit.dtype) == (-1.0, 1.0, torch.float32)
    assert torch.equal(to_uint8(unit), values)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_joining_keeps_labels_only_if_all_have_them():
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    labelled = ImageTensors(images, torch.tensor([1, 2]))
    assert concatenate([labelled, labelled]).labels.tolist() == [1, 2, 1, 2]
    assert concatenate([labelled, ImageTensors(images)]).labels is None
    assert labelled.select(torch.tensor([1])).labels.tolist() == [2]
