import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from fedddpm_app.config import ConfigError
from fedddpm_app.device import resolve_device
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.seeding import split_seed
from fedddpm_app.training.acceleration import Acceleration
from fedddpm_app.training.batches import shuffled_batches
from fedddpm_app.training.hooks import LocalRound, TrainingHook
from fedddpm_app.training.optimization import create_schedule
from fedddpm_app.training.trainer import Trainer
from fedddpm_app.weights import snapshot

CPU = torch.device("cpu")


def pixel_loss(model, batch, generator):
    noise = torch.randn(len(batch.images), generator=generator)
    return (model(batch.images.flatten(1)).squeeze(1) - noise).square().mean()


def make_data(seed, count=20):
    images = torch.randint(0, 256, (count, 1, 2, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return ImageTensors(images)


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))


@pytest.fixture
def training(config):
    return config.training


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_client_a_then_b_in_one_process_equals_b_alone(training, optimizer, ema_decay):
    settings = dataclasses.replace(training, optimizer=optimizer, learning_rate=0.05, weight_decay=0.01)
    start = snapshot(make_model())
    shared = Trainer(make_model(), pixel_loss, settings, CPU)
    shared.train(start, make_data(1), steps=7, seed=1, learning_rate=0.3, ema_decay=0.5)
    after_a = shared.train(start, make_data(2), steps=5, seed=2, ema_decay=ema_decay)
    alone = Trainer(make_model(), pixel_loss, settings, CPU).train(
        start, make_data(2), steps=5, seed=2, ema_decay=ema_decay
    )
    assert after_a.loss == alone.loss
    for name, value in alone.weights.items():
        assert torch.equal(after_a.weights[name], value)
        assert not torch.equal(start[name], value)


def test_keeping_the_optimizer_differs_from_a_fresh_one(training):
    start = snapshot(make_model())
    trainer = Trainer(make_model(), pixel_loss, training, CPU)
    trainer.train(start, make_data(1), steps=5, seed=1)
    fresh = trainer.train(start, make_data(1), steps=3, seed=2)
    trainer.train(start, make_data(1), steps=5, seed=1)
    kept = trainer.train(start, make_data(1), steps=3, seed=2, keep_optimizer=True)
    assert not torch.equal(fresh.weights["0.weight"], kept.weights["0.weight"])


def test_the_global_generator_is_left_alone_and_does_not_matter(training):
    start = snapshot(make_model())
    trainer = Trainer(make_model(), pixel_loss, training, CPU)
    torch.manual_seed(1)
    first = trainer.train(start, make_data(1), steps=3, seed=5)
    state = torch.random.get_rng_state()
    torch.manual_seed(2)
    second = trainer.train(start, make_data(1), steps=3, seed=5)
    assert torch.equal(first.weights["0.weight"], second.weights["0.weight"])
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_noise_dropout_and_batch_order_are_streams_of_their_own(training):
    """One seed for two of them would tie the noise of an image to its place in the order."""
    drawn = {}

    def loss_fn(model, batch, generator):
        drawn["noise"] = torch.rand(20, generator=generator.clone_state())
        drawn["dropout"] = torch.rand(20)
        drawn["order"] = batch.images.flatten(1)[:, 0]
        return pixel_loss(model, batch, generator)

    settings = dataclasses.replace(training, batch_size=20)
    data = make_data(1)
    Trainer(make_model(), loss_fn, settings, CPU).train(snapshot(make_model()), data, steps=1, seed=5)
    assert not torch.equal(drawn["noise"], drawn["dropout"])
    for seed in (5, *split_seed(5, 3)[1:]):  # the seeds that are not the order's own
        other = next(shuffled_batches(20, 20, torch.Generator().manual_seed(seed)))
        assert not torch.equal(drawn["order"], data.batch(other).images.flatten(1)[:, 0])


def test_one_sgd_step_is_the_gradient(training):
    settings = dataclasses.replace(
        training, optimizer="sgd", learning_rate=0.1, gradient_clip=0.0, batch_size=20, weight_decay=0.0
    )
    model = nn.Linear(4, 1).double()
    start = snapshot(model)
    data = make_data(3)

    def loss_fn(model, batch, generator):
        return model(batch.images.flatten(1).double()).square().mean()

    result = Trainer(model, loss_fn, settings, CPU).train(start, data, steps=1, seed=0)
    x = data.batch(torch.arange(20)).images.flatten(1).double()
    prediction = x @ start["weight"].T + start["bias"]
    expected = start["weight"] - 0.1 * 2 * (prediction * x).mean(0, keepdim=True)
    assert torch.allclose(result.weights["weight"], expected, atol=1e-12)
    assert result.loss == pytest.approx(float(prediction.square().mean()), rel=1e-6)


def test_gradient_clip_bounds_the_step(training):
    settings = dataclasses.replace(training, optimizer="sgd", learning_rate=1.0, gradient_clip=0.01)
    start = snapshot(make_model())
    result = Trainer(make_model(), lambda m, b, g: 1e3 * pixel_loss(m, b, g), settings, CPU).train(
        start, make_data(1), steps=1, seed=0
    )
    moved = torch.cat([(result.weights[k] - start[k]).flatten() for k in start])
    assert float(moved.norm()) == pytest.approx(0.01, rel=1e-4)


def test_no_steps_give_back_the_start(training):
    start = snapshot(make_model())
    result = Trainer(make_model(), pixel_loss, training, CPU).train(start, make_data(1), steps=0, seed=0, ema_decay=0.9)
    assert all(torch.equal(result.weights[k], start[k]) for k in start)


def test_hooks_reach_loss_and_gradients(config):
    class Freeze(TrainingHook):
        def on_start(self, model):
            self.anchor = snapshot(model)

        def add_to_loss(self, loss, model, batch):
            return loss + 0.0 * sum(p.sum() for p in model.parameters())

        def adjust_gradients(self, model):
            for parameter in model.parameters():
                parameter.grad.zero_()

    start = snapshot(make_model())
    settings = dataclasses.replace(config.training, optimizer="sgd", weight_decay=0.0)
    hook = Freeze(LocalRound(config, 0, 1, start))
    result = Trainer(make_model(), pixel_loss, settings, CPU).train(start, make_data(1), steps=3, seed=0, hook=hook)
    for weights in (hook.anchor, result.weights):
        assert all(torch.equal(weights[k], start[k]) for k in start)


def test_the_mean_loss_is_in_evaluation_mode_over_all_examples(training):
    def loss(model, batch, generator):
        return model(batch.images.flatten(1)).square().mean()

    settings = dataclasses.replace(training, batch_size=3)
    model, data = make_model(), make_data(1, count=20)
    found = Trainer(make_model(), loss, settings, CPU).mean_loss(snapshot(model), data, seed=0)
    with torch.no_grad():
        expected = loss(model.eval(), data.batch(torch.arange(20)), None)
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_reports_end_with_the_last_step(training):
    reports = []
    Trainer(make_model(), pixel_loss, training, CPU).train(
        snapshot(make_model()), make_data(1), steps=4, seed=0, on_report=reports.append
    )
    assert (reports[-1].step, reports[-1].steps, reports[-1].seconds_left) == (4, 4, 0.0)
    assert reports[-1].loss > 0


@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (3, 8), (5, 5)])
def test_batches_have_one_shape_and_visit_every_example_equally(count, batch_size):
    batches = shuffled_batches(count, batch_size, torch.Generator().manual_seed(0))
    drawn = list(itertools.islice(batches, count))
    assert {len(batch) for batch in drawn} == {batch_size}
    flat = torch.cat(drawn)
    for epoch in flat.split(count):
        assert sorted(epoch.tolist()) == list(range(count))


def test_bf16_rounds_the_forward_pass_and_keeps_float32_weights(training):
    results = [
        Trainer(make_model(), pixel_loss, training, CPU, Acceleration(precision)).train(
            snapshot(make_model()), make_data(1), steps=2, seed=0
        )
        for precision in ("fp32", "bf16")
    ]
    assert all(value.dtype == torch.float32 for value in results[1].weights.values())
    assert results[0].loss != results[1].loss
    assert results[0].loss == pytest.approx(results[1].loss, rel=0.02)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match='device = "cuda" is not there'):
        resolve_device("cuda")
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize("kind", ["constant", "cosine"])
def test_learning_rate_warms_up_from_the_first_step_and_cosine_falls_to_zero(kind):
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], 1.0)
    schedule = create_schedule(optimizer, 0.5, kind, warmup_steps=4, steps=14)
    rates = []
    for _ in range(15):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    after = [0.5] * 11 if kind == "constant" else [0.25 * (1 + math.cos(math.pi * k / 10)) for k in range(11)]
    assert rates[4:] == pytest.approx(after)


def test_one_step_moves_the_weights_whatever_the_warm_up(training):
    settings = dataclasses.replace(training, warmup_steps=10)
    start = snapshot(make_model())
    result = Trainer(make_model(), pixel_loss, settings, CPU).train(start, make_data(1), steps=1, seed=0)
    assert not torch.equal(result.weights["0.weight"], start["0.weight"])


def test_no_examples_are_refused_not_waited_for():
    with pytest.raises(ValueError, match="no examples"):
        next(shuffled_batches(0, 4, torch.Generator()))
