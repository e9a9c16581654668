import dataclasses

import pytest
import torch

from fedddpm_app.diffusion.images import ImageTensors, concatenate, to_uint8, to_unit_range
from fedddpm_app.diffusion.objective import create_noise_scheduler
from fedddpm_app.diffusion.sampling import SAMPLERS, image_seeds, sample_images
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.weights import snapshot
from tests.diffusion.test_objective import VARIANCE, OptimalGaussianPredictor


@pytest.fixture
def model(config):
    return create_unet(config.unet, config.data, seed=0)


def draw(model, config, sampler="ddpm", seeds=None, **options):
    scheduler = create_noise_scheduler(config.diffusion)
    return sample_images(
        model, scheduler, sampler=sampler, steps=5, seeds=seeds or image_seeds(0, "test", 7), shape=(1, 8, 8), **options
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


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_sampling_with_the_optimal_predictor_gives_the_data_distribution(config, sampler, prediction_type):
    """1-D Gaussian data: exact model in, right mean and variance out, for every sampler and target."""
    diffusion = dataclasses.replace(
        config.diffusion, prediction_type=prediction_type, diffusion_steps=100, beta_schedule="squaredcos_cap_v2"
    )
    scheduler = create_noise_scheduler(diffusion)
    scheduler.register_to_config(clip_sample=False)
    images = sample_images(
        OptimalGaussianPredictor(scheduler),
        scheduler,
        sampler=sampler,
        steps=100 if sampler == "ddpm" else 50,
        seeds=image_seeds(0, "gaussian", 1500),
        shape=(1, 1, 1),
        batch_size=1500,
    )
    values = to_unit_range(images).flatten()
    expected = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).mul(VARIANCE**0.5).clamp(-1, 1)
    assert float(values.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(values.std()) == pytest.approx(float(expected.std()), rel=0.08)


def test_no_images_is_an_empty_set(model, config):
    assert draw(model, config, seeds=[]).shape == (7, 1, 8, 8)
    scheduler = create_noise_scheduler(config.diffusion)
    assert sample_images(model, scheduler, sampler="ddim", steps=2, seeds=[], shape=(1, 8, 8)).shape == (0, 1, 8, 8)


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
