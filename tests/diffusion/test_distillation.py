"""Distillation: the loss, its gradient, and the batches with the teachers' predictions."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from fedddpm_app.diffusion.distillation import DistillationBatch, DistillationSet
from fedddpm_app.diffusion.images import ImageBatch, ImageTensors, to_unit_range
from fedddpm_app.diffusion.objective import DenoisingObjective, create_noise_scheduler

TEACHERS = {3: 0.5, 7: -2.0, 9: 4.0}


class Scale(nn.Module):
    """Predicts a x_t."""

    def __init__(self, a=1.0):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, x_t, t, return_dict=False, class_labels=None):
        shift = 0.0 if class_labels is None else class_labels.view(-1, 1, 1, 1)
        return ((self.a * x_t + shift).to(x_t.dtype),)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (10, 1, 4, 4), dtype=torch.uint8, generator=generator)


@pytest.fixture
def make_set(config, images):
    loaded = []

    def load(teacher):
        loaded.append(teacher)
        return {"a": torch.tensor(TEACHERS[teacher], dtype=torch.float64)}

    def make(labels=None, flip=False, **objective):
        diffusion = replace(config.diffusion, prediction_type=objective.pop("prediction_type", "epsilon"))
        objective = DenoisingObjective(create_noise_scheduler(diffusion), flip, **objective)
        clients = [3, 3, 3, 7, 7, 9, 9, 9, 9, 9]
        made = DistillationSet(ImageTensors(images, labels), clients, load, Scale(), objective)
        made.loaded = loaded
        return made

    return make


def order(batch_size=4):
    return (torch.arange(k, k + batch_size) % 10 for k in itertools.count(0, batch_size))


def stream(made, steps, batch_size=4, seed=1):
    return list(made.stream(order(batch_size), steps, torch.Generator().manual_seed(seed)))


def test_the_gradient_is_its_closed_form(make_set):
    """d/da mean (a x - y)^2 = 2 mean x (a x - y)."""
    x, y = torch.randn(2, 5, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = Scale(0.7)
    batch = DistillationBatch(x, torch.zeros(5, dtype=torch.int64), None, y)
    make_set().loss(model, batch, None).backward()
    expected = 2 * (x * (0.7 * x - y)).mean()
    assert torch.allclose(model.a.grad, expected, rtol=1e-12)


def test_a_model_equal_to_its_teacher_has_neither_loss_nor_gradient(make_set):
    x = torch.randn(5, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = Scale(0.5)
    batch = DistillationBatch(x, torch.zeros(5, dtype=torch.int64), None, 0.5 * x)
    loss = make_set().loss(model, batch, None)
    loss.backward()
    assert loss == 0
    assert model.a.grad == 0


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_weights_and_pixel_loss_are_those_of_the_denoising_loss(make_set, prediction_type):
    """A teacher that predicts the denoising target gives the denoising loss."""
    made = make_set(prediction_type=prediction_type, weighting="sigmoid-log-snr", loss="huber")
    generator = torch.Generator().manual_seed(0)
    images, noise = 2 * torch.randn(2, 8, 1, 4, 4, generator=generator)
    objective, t, model = made._objective, torch.arange(8) * 6, Scale(0.7)
    batch = DistillationBatch(
        objective.scheduler.add_noise(images, noise, t), t, None, objective.target(images, noise, t)
    )
    expected = objective.losses(model, ImageBatch(images, None), t, noise).mean()
    assert torch.allclose(made.loss(model, batch, None), expected, rtol=1e-6)


def test_a_chunk_of_large_images_is_bounded_in_bytes():
    images = ImageTensors(torch.zeros(2, 3, 256, 256, dtype=torch.uint8))
    made = DistillationSet(images, [1, 2], lambda _: {}, Scale(), None)
    assert made._chunk_size == 341


@pytest.mark.parametrize("labelled", [False, True])
def test_each_target_is_the_prediction_of_the_images_own_teacher(make_set, labelled):
    labels = torch.arange(10) if labelled else None
    made = make_set(labels)
    for batch, index in zip(stream(made, 5), order(), strict=False):
        scale = torch.tensor([TEACHERS[[3, 3, 3, 7, 7, 9, 9, 9, 9, 9][k]] for k in index.tolist()])
        shift = torch.zeros(len(index)) if labels is None else labels[index]
        expected = scale.view(-1, 1, 1, 1) * batch.x_t + shift.view(-1, 1, 1, 1)
        assert torch.allclose(batch.target, expected, rtol=1e-6)
        assert labels is None or torch.equal(batch.labels, labels[index])
    assert made.loaded == [3, 7, 9], "each teacher is loaded once for many batches"


def test_x_t_follows_the_forward_process(make_set, images, config):
    """At small t it is nearly the image, and at the last t it is nearly noise, whatever the image."""
    made = make_set()
    abar = create_noise_scheduler(config.diffusion).alphas_cumprod
    residuals, unit = [], to_unit_range(images)
    for batch, index in zip(stream(made, 200), order(), strict=False):
        a = abar[batch.t].view(-1, 1, 1, 1)
        residuals.append(((batch.x_t - a.sqrt() * unit[index]) / (1 - a).sqrt()).flatten())
    noise = torch.cat(residuals)
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03


def test_the_number_of_steps_does_not_change_the_batches_before_the_last_chunk(make_set):
    made = make_set()
    made._chunk_size = 8
    long, short = stream(made, 6), stream(made, 4)
    assert len(long) == 6
    assert all(torch.equal(a.target, b.target) for a, b in zip(long, short, strict=False))
    assert not torch.equal(long[0].x_t, stream(made, 1, seed=2)[0].x_t)


def test_images_are_mirrored_as_in_training(make_set):
    flipped, plain = stream(make_set(flip=True), 1), stream(make_set(), 1)
    assert not torch.equal(flipped[0].x_t, plain[0].x_t)


def test_every_image_needs_a_teacher(images, config):
    objective = DenoisingObjective(create_noise_scheduler(config.diffusion))
    with pytest.raises(ValueError, match="10 images have 2 teachers"):
        DistillationSet(ImageTensors(images), [1, 2], lambda _: {}, Scale(), objective)
