"""Noisy gradients: per example, averaged over draws, clipped, noised, divided by q n, in this order."""

import dataclasses
import math

import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from fedddpm_app.config import ConfigError, load_config
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.diffusion.objective import DenoisingObjective, create_noise_scheduler
from fedddpm_app.inprocess.task import Columns
from fedddpm_app.training import private_gradients as private
from fedddpm_app.training.batches import poisson_batches
from fedddpm_app.training.hooks import TrainingHook
from fedddpm_app.training.privacy import Privacy
from fedddpm_app.training.private_gradients import PrivateGradients
from fedddpm_app.training.trainer import Trainer
from fedddpm_app.weights import snapshot

CPU = torch.device("cpu")
ALL = Privacy(sample_rate=1.0, noise_multiplier=0.0, clip=1e9, secret=False)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small_unet(**more):
    torch.manual_seed(0)
    return UNet2DModel(
        **{
            **{"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "norm_num_groups": 4},
            **{"block_out_channels": (8, 16), "down_block_types": ("DownBlock2D", "AttnDownBlock2D")},
            **{"up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "num_class_embeds": 3, "add_attention": True},
            **more,
        }
    ).train()


@pytest.fixture
def objective(config):
    return DenoisingObjective(create_noise_scheduler(config.diffusion))


def images(count=5):
    pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=seeded(1), dtype=torch.uint8)
    return ImageTensors(pixels, torch.arange(count) % 3)


def of_each(objective, count):
    """A loss whose t and noise belong to the image, so that a part of a batch has the same ones."""
    t = torch.randint(50, (count,), generator=seeded(2))
    noise = torch.randn(count, 1, 8, 8, generator=seeded(3))
    pixels = images(count).batch(torch.arange(count)).images

    def loss_of(model, batch):
        index = torch.stack([(pixels == image).flatten(1).all(1).nonzero()[0, 0] for image in batch.images])
        return objective.losses(model, batch, t[index], noise[index]).mean()

    return loss_of


def gradients_of(model, data, privacy, loss_of, seed=0, micro_batch=0):
    """The gradient of the first step, by name, and the object."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with PrivateGradients(model, optimizer, data, privacy, seeded(seed), seeded(seed), micro_batch) as gradients:
        gradients.next(lambda batch: loss_of(model, batch))
        return {name: p.grad.clone() for name, p in model.named_parameters()}


def one_by_one(model, data, loss_of, clip=math.inf):
    """The sum of the gradients of single examples, each clipped, by a loop of plain torch."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in range(len(data)):
        model.zero_grad()
        loss_of(model, data.batch(torch.tensor([i]))).backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
        for name, p in model.named_parameters():
            total[name] += p.grad * min(1.0, clip / norm)
    model.zero_grad()
    return total


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("clip", [1e9, 0.05])
def test_the_gradient_of_a_unet_is_the_mean_of_clipped_gradients_of_single_images(objective, clip, channels_last):
    """With attention, whose transposed output made Opacus's convolutions read other pixels, and class embedding."""
    model, data, loss_of = small_unet(), images(), of_each(objective, 5)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    expected = one_by_one(model, data, loss_of, clip)
    found = gradients_of(model, data, dataclasses.replace(ALL, clip=clip), loss_of)
    for name, each in expected.items():
        assert torch.allclose(found[name], each / 5, atol=1e-5), name


def test_opacus_still_needs_our_hook_on_convolutions(objective, monkeypatch):
    """When this fails, Opacus reads all layouts right, and the hook may go."""
    monkeypatch.setattr(private, "_contiguous", lambda _, inputs: inputs)
    with pytest.raises(ConfigError, match=r"do not have the batch's gradient as their mean"):
        gradients_of(small_unet(), images(), ALL, of_each(objective, 5))


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_a_split_batch_gives_the_same_gradient(objective, micro_batch):
    loss_of, privacy = of_each(objective, 5), dataclasses.replace(ALL, clip=0.1, noise_multiplier=0.5)
    whole = gradients_of(small_unet(), images(), privacy, loss_of)
    split = gradients_of(small_unet(), images(), privacy, loss_of, micro_batch=micro_batch)
    for name, each in whole.items():
        assert torch.allclose(split[name], each, atol=1e-6), name


def test_a_large_model_splits_its_batches(monkeypatch):
    """Two parameters of 4 bytes: 32 bytes hold the gradients of 4 examples, or of 2 with their sum over the draws."""
    seen = []

    def loss_of(model, batch):
        seen.append(len(batch))
        return line_loss(model, batch)

    monkeypatch.setattr(private, "BYTES_IN_MEMORY", 32)
    gradients_of(nn.Linear(2, 1, bias=False), Columns(torch.ones(5, 2), "x"), ALL, loss_of)
    assert seen == [4, 4, 4, 1]  # the first one three times, for the check
    twice = dataclasses.replace(ALL, multiplicity=2)
    gradients_of(nn.Linear(2, 1, bias=False), Columns(torch.ones(5, 2), "x"), twice, loss_of)
    assert seen[4:] == [2, 2, 2, 2, 2, 2, 1, 1]


# ---- by hand: the gradient of line_loss at an example x is x


def line_loss(model, batch):
    return model(batch).mean()


def line(*examples, dtype=torch.float64):
    model = nn.Linear(2, 1, bias=False).to(dtype)
    return model, Columns(torch.tensor(examples, dtype=dtype), "x")


def test_each_example_is_clipped_alone_and_the_sum_is_divided_by_the_expected_batch():
    model, data = line([3.0, 4.0], [0.3, 0.4], [0.0, -0.1])
    found = gradients_of(model, data, dataclasses.replace(ALL, clip=1.0), line_loss)["weight"]
    expected = torch.tensor([[0.6 + 0.3, 0.8 + 0.4 - 0.1]]) / 3  # norms 5, 0.5 and 0.1: only the first is clipped
    assert torch.allclose(found, expected.double(), atol=1e-5)


def test_draws_are_averaged_before_clipping():
    """Draws of 4 and -2 times an example of norm 1: their mean is 1, and clipping each first would give 0."""
    factors = iter([4.0, -2.0])
    model, data = line([0.6, 0.8])
    privacy = dataclasses.replace(ALL, clip=1.0, multiplicity=2)
    found = gradients_of(model, data, privacy, lambda model, batch: next(factors) * line_loss(model, batch))
    assert torch.allclose(found["weight"], torch.tensor([[0.6, 0.8]]).double(), atol=1e-5)


def test_the_noise_has_the_variance_of_the_mechanism_and_is_added_after_clipping():
    """sigma C / (q n), with a quarter of the examples in a batch."""
    model = nn.Linear(4000, 1, bias=False)
    data = Columns(torch.zeros(8, 4000), "x")
    privacy = dataclasses.replace(ALL, sample_rate=0.25, noise_multiplier=3.0, clip=0.5)
    for secret in (False, True):
        found = gradients_of(model, data, dataclasses.replace(privacy, secret=secret), line_loss)["weight"]
        assert float(found.std()) == pytest.approx(3.0 * 0.5 / (0.25 * 8), rel=0.05)
        assert abs(float(found.mean())) < 0.05


def test_an_empty_batch_is_a_step_with_noise_alone():
    privacy = dataclasses.replace(ALL, sample_rate=1e-12, noise_multiplier=1e-12, clip=1.0)
    model, data = line([3.0, 4.0])
    found = gradients_of(model, data, privacy, lambda *_: pytest.fail("there is no batch"))["weight"]
    assert 0.01 < float(found.abs().max()) < 10.0  # noise of 1e-12, divided by q n = 1e-12


def test_poisson_batches_have_independent_examples():
    """In 4,000 batches: frequency q of each example, q^2 of each pair, and sizes with the variance n q (1 - q)."""
    batches = poisson_batches(10, 0.3, seeded())
    chosen = torch.zeros(4000, 10)
    for row in chosen:
        row[next(batches)] = 1.0
    assert torch.allclose(chosen.mean(0), torch.tensor(0.3), atol=0.03)
    pairs = chosen.T @ chosen / 4000
    assert torch.allclose(pairs[~torch.eye(10, dtype=bool)], torch.tensor(0.09), atol=0.02)
    assert float(chosen.sum(1).var()) == pytest.approx(2.1, rel=0.1)
    assert next(poisson_batches(10, 1.0, seeded())).tolist() == list(range(10))


@pytest.mark.parametrize("extreme", [1e6, -1e3, 0.5])
def test_one_example_more_moves_the_sum_by_at_most_the_clip(extreme):
    """A canary: with the same noise, its sum differs by its clipped gradient, however large that is."""
    examples = [[0.3, 0.4], [5.0, 0.0], [0.0, -2.0]]
    privacy = dataclasses.replace(ALL, clip=1.0, noise_multiplier=2.0)
    sums = []
    for rows in (examples, [*examples, [extreme, extreme]]):
        model, data = line(*rows)
        sums.append(gradients_of(model, data, privacy, line_loss)["weight"] * len(rows))
    moved = float((sums[1] - sums[0]).norm())
    assert moved == pytest.approx(min(1.0, abs(extreme) * math.sqrt(2)), abs=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e200])
def test_an_example_without_a_finite_gradient_counts_as_none(bad):
    """1e200 is finite, but its squared norm is not."""
    privacy = dataclasses.replace(ALL, clip=1.0)
    model, data = line([0.3, 0.4], [bad, 1.0])
    found = gradients_of(model, data, privacy, line_loss)["weight"]
    assert torch.allclose(found, torch.tensor([[0.15, 0.2]]).double(), atol=1e-5)


def test_layers_that_mix_examples_are_refused(objective):
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    with pytest.raises(ConfigError, match="layers without buffers"):
        gradients_of(model, Columns(torch.randn(4, 2), "x"), ALL, line_loss)
    model[0](torch.randn(3, 2)).mean().backward()  # no hook of ours is left


def relative(model, batch):
    errors = model(batch).square().flatten()
    return (errors / errors.detach().max()).mean()


def spread(model, batch):
    return model(batch).var()


@pytest.mark.parametrize(
    ("loss_of", "layer"),
    [
        (relative, nn.Identity()),
        (spread, nn.Identity()),
        (line_loss, nn.BatchNorm1d(4, affine=False, track_running_stats=False)),
    ],
)
def test_a_loss_or_a_layer_that_mixes_examples_is_refused(loss_of, layer):
    """Its gradients per example have the right mean, but one example would change those of all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), layer, nn.Tanh(), nn.Linear(4, 1))
    with pytest.raises(ConfigError, match="depend on the other images of the batch"):
        gradients_of(model, Columns(torch.randn(6, 2, generator=seeded(1)), "x"), ALL, loss_of)


def test_the_check_of_the_first_batch_changes_no_random_numbers():
    """Neither those of the loss nor those of dropout: a second training without the check has the same gradient."""
    data = Columns(torch.randn(6, 2, generator=seeded(1)), "x")

    def found(checked):
        torch.manual_seed(0)
        model, draws = nn.Sequential(nn.Linear(2, 4), nn.Dropout(), nn.Linear(4, 1)), seeded(5)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        loss_of = lambda batch: model(batch + torch.randn(batch.shape, generator=draws)).square().mean()  # noqa: E731
        with PrivateGradients(model, optimizer, data, ALL, seeded(0), seeded(0), draws=draws) as gradients:
            gradients._is_checked = not checked
            for _ in range(2):
                gradients.next(loss_of)
            return [p.grad.clone() for p in model.parameters()]

    assert all(map(torch.equal, found(True), found(False)))


def test_a_parameter_that_is_used_beside_its_layer_is_refused():
    """Its gradients per example would miss that use."""
    model, data = line([3.0, 4.0], [0.3, 0.4])
    with pytest.raises(ConfigError, match=r"those of weight do not have .* through their own layers"):
        gradients_of(model, data, ALL, lambda model, batch: model(batch).mean() + (batch * model.weight).mean())


# ---- in the trainer


@pytest.fixture
def training(run_config):
    return load_config(run_config | {"batch-size": 8, "gradient-clip": 1e-3, "learning-rate": 0.1}).training


def train(training, privacy, seed=0, **more):
    settings = dataclasses.replace(training, optimizer=more.pop("optimizer", "adamw"))
    torch.manual_seed(0)
    trainer = Trainer(nn.Linear(2, 1), lambda m, batch, _: m(batch).square().mean(), settings, CPU)
    data = Columns(torch.randn(20, 2, generator=seeded(4)), "x")
    return trainer.train(snapshot(trainer.model), data, steps=4, seed=seed, privacy=privacy, **more), trainer


NOISY = Privacy(sample_rate=0.4, noise_multiplier=1.0, clip=1.0, secret=False)


def test_equal_seeds_repeat_a_training_bit_for_bit_unless_the_noise_is_secret(training):
    for secret in (False, True):
        privacy = dataclasses.replace(NOISY, secret=secret)
        first, second = (train(training, privacy)[0].weights for _ in range(2))
        assert torch.equal(first["weight"], second["weight"]) is not secret
    other = train(training, NOISY, seed=1)[0].weights
    assert not torch.equal(train(training, NOISY)[0].weights["weight"], other["weight"])


def test_a_step_is_that_of_the_optimizer_with_schedule_and_average(training):
    """Without noise, all examples and no clipping: the same training as the plain one on full batches."""
    more = {"optimizer": "sgd", "learning_rate_schedule": "cosine", "ema_decay": 0.5}
    settings = dataclasses.replace(training, gradient_clip=0.0, warmup_steps=2)
    private_one, _ = train(settings, ALL, **more)
    plain, _ = train(settings, None, batch_size=0, **more)
    assert torch.allclose(private_one.weights["weight"], plain.weights["weight"], atol=1e-6)
    assert private_one.loss == pytest.approx(plain.loss, rel=1e-5)
    assert {"loss", "final-loss", "seconds"} <= plain.metrics().keys()
    assert private_one.metrics() == {"steps": 4, "dp-epsilon": 0.0, "dp-epsilon-total": 0.0}


def test_a_hook_changes_the_gradient_after_the_noise_and_no_trace_is_left(training):
    class Zero(TrainingHook):
        def __init__(self):
            self.seen = []

        def add_to_loss(self, *_):
            raise AssertionError("not in a private training")

        def adjust_gradients(self, model):
            self.seen.append(float(model.weight.grad.norm()))
            for parameter in model.parameters():
                parameter.grad.zero_()

    hook = Zero()
    result, trainer = train(training, dataclasses.replace(NOISY, noise_multiplier=100.0), optimizer="sgd", hook=hook)
    assert len(hook.seen) == 4
    assert min(hook.seen) > 1.0
    torch.manual_seed(0)
    assert torch.equal(result.weights["weight"], nn.Linear(2, 1).weight)
    assert not [name for p in trainer.parameters for name in vars(p)]
    assert not trainer.model._forward_hooks
    assert not trainer.model._backward_hooks
    plain = trainer.train(result.weights, Columns(torch.ones(3, 2), "x"), steps=1, seed=0)
    assert not torch.equal(plain.weights["weight"], result.weights["weight"])


def test_bfloat16_is_accepted(objective):
    def loss_of(model, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return of_each(objective, 5)(model, batch)

    found = gradients_of(small_unet(), images(), ALL, loss_of)
    exact = gradients_of(small_unet(), images(), ALL, of_each(objective, 5))
    for name, each in exact.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - each).norm() < 0.1 * each.norm() + 1e-3, name
