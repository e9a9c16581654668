"""MOON against numpy over rounds, its term against its closed form, and how representations are taken."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from fedddpm_app.algorithms.moon import Moon, MoonHook, Representation, contrastive_loss, share_of_pass
from fedddpm_app.config import ConfigError, default_run_config, load_config
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.inprocess.simulate import simulate
from fedddpm_app.training.hooks import LocalRound
from tests.algorithms.problems import (
    CLIENTS,
    RATE,
    ROUNDS,
    STEPS,
    Point,
    caught,
    gradient,
    gradient_steps,
    quadratic,
    run,
    same,
    shares,
    start,
)

MU, TAU = 3.0, 0.5


def cosine(z, other):
    return (z * other).sum(1) / (np.linalg.norm(z, axis=1) * np.linalg.norm(other, axis=1))


def cosine_gradient(z, other):
    """d sim(z, other) / d z, a row per example."""
    length = np.linalg.norm(z, axis=1, keepdims=True)
    return other / (length * np.linalg.norm(other, axis=1, keepdims=True)) - cosine(z, other)[:, None] * z / length**2


def contrastive_gradient(z, z_glob, z_prev):
    """d l_con / d z of each example: with s = e^glob / (e^glob + e^prev), (1 - s) (d sim_prev - d sim_glob) / tau."""
    share = 1 / (1 + np.exp((cosine(z, z_prev) - cosine(z, z_glob)) / TAU))
    return (1 - share)[:, None] * (cosine_gradient(z, z_prev) - cosine_gradient(z, z_glob)) / TAU


def reference(mu=MU):
    """Algorithm 1 with z = a x, transcribed."""
    w, previous = start(), [None] * len(CLIENTS)
    for _ in range(ROUNDS):
        local = []
        for i, client in enumerate(CLIENTS):
            a = client[0].numpy()

            def pull(x, a=a, w=w, old=previous[i]):
                return 0.0 if old is None else mu * (contrastive_gradient(a * x, a * w, a * old) * a).mean(0)

            previous[i] = gradient_steps(w, STEPS, RATE, lambda x, c=client: gradient(c, x), pull)
            local.append(previous[i])
        w = sum(p * v for p, v in zip(shares(CLIENTS), local, strict=True))
    return w


def check_reference(algorithm):
    assert same(run(algorithm, mu=MU, temperature=TAU), reference())


def test_rounds_equal_the_reference():
    check_reference("moon")
    assert not same(reference(), reference(mu=0.0), 1e-3)


def test_broken_terms_are_caught():
    class Swapped(MoonHook):
        """Draws to the previous model and away from the global one."""

        def on_start(self, model):
            super().on_start(model)
            if self._views:
                self._views[1:] = self._views[:0:-1]

    class PreviousIsGlobal(MoonHook):
        """Keeps what the round started from instead of what it ended with."""

        def on_end(self, result, full_gradient):
            self.kept["previous"] = self.round.global_weights

    for hook_class in (Swapped, PreviousIsGlobal):

        class Mutant(Moon):
            hook = hook_class

        assert caught(check_reference, Mutant)


def test_the_term_is_the_papers_and_its_gradient_the_closed_form():
    z, z_glob, z_prev = (torch.randn(5, 4, dtype=torch.float64) for _ in range(3))
    z.requires_grad_()
    loss = contrastive_loss(z, z_glob, z_prev, TAU)
    with_glob, with_prev = (np.exp(cosine(z.detach().numpy(), o.numpy()) / TAU) for o in (z_glob, z_prev))
    assert float(loss.detach()) == pytest.approx(-np.log(with_glob / (with_glob + with_prev)).mean(), rel=1e-12)
    (found,) = torch.autograd.grad(loss, z)
    expected = contrastive_gradient(z.detach().numpy(), z_glob.numpy(), z_prev.numpy()) / 5
    assert np.abs(found.numpy() - expected).max() < 1e-14
    assert torch.autograd.gradcheck(lambda x: contrastive_loss(x, z_glob, z_prev, TAU), z)


def test_a_unet_is_compared_by_its_middle_block_and_runs_no_further(config):
    model = create_unet(config.unet, config.data, 0).eval()
    seen = []
    model.up_blocks[0].register_forward_hook(lambda *_: seen.append("up"))
    model.mid_block.register_forward_hook(lambda _, __, output: seen.append(output))
    view = Representation(model, "mid_block")
    x_t, t = torch.randn(3, 1, 8, 8), torch.tensor([1, 2, 3])
    with torch.no_grad():
        model(x_t, t, return_dict=False)
        called = view.value
        assert view.arguments[0][0] is x_t
        alone = view.of(view.arguments)
    assert called.shape == (3, 16)
    assert torch.equal(called, seen[0].mean((2, 3)))
    assert torch.equal(alone, called)
    assert [each for each in seen if isinstance(each, str)] == ["up"]  # only in the whole call
    view.close()
    assert not model._forward_pre_hooks


def test_a_name_that_is_no_submodule_lists_them():
    with pytest.raises(ConfigError, match='"middle" is not a submodule of the model: use 0 or 1 or an empty'):
        Representation(nn.Sequential(nn.Linear(1, 1), nn.ReLU()), "middle")


def test_submodules_without_a_representation_are_named():
    class Model(nn.Module):
        def __init__(self, output):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Identity(), nn.Identity()])
            self.unused = nn.Identity()
            self.output = output

        def forward(self):
            return self.output

    with pytest.raises(ConfigError, match=r'"blocks" is a list of submodules.*use blocks\.0 or blocks\.1\.'):
        Representation(Model(torch.zeros(1)), "blocks")
    with pytest.raises(ConfigError, match='"unused" is a submodule that the model never calls'):
        Representation(Model(torch.zeros(1)), "unused").of(((), {}))
    for output in ((1, "text"), {"sample": None}, None):
        with pytest.raises(ConfigError, match="a submodule whose output has no tensor"):
            Representation(Model(output), "").of(((), {}))


def test_a_wrong_name_is_found_before_any_client_trains():
    calls = []

    def loss(model, batch):
        calls.append(1)
        return quadratic(model, batch)

    with pytest.raises(ConfigError, match='"middle" is not a submodule of the model: use an empty text'):
        simulate("moon", Point(), loss, CLIENTS, 2, 1, 0.1, representation="middle")
    assert not calls


@pytest.mark.parametrize(
    ("output", "pooled"),
    [
        (torch.arange(24.0).reshape(2, 3, 2, 2), [[1.5, 5.5, 9.5], [13.5, 17.5, 21.5]]),  # over pixels
        (torch.arange(12.0).reshape(2, 2, 3), [[1.5, 2.5, 3.5], [7.5, 8.5, 9.5]]),  # over tokens
        (torch.arange(4.0).reshape(2, 2), [[0, 1], [2, 3]]),
        (torch.arange(2.0), [[0, 1]]),
    ],
)
def test_outputs_are_averaged_over_their_places(output, pooled):
    class Gives(nn.Module):
        def forward(self):
            return {"sample": output}

    model = Gives()
    view = Representation(model, "")
    model()
    assert view.value.tolist() == pooled
    output += 1  # what comes after the submodule may work in place
    assert view.value.tolist() == pooled


def test_the_cost_counts_passes_up_to_the_representation(run_config):
    config = load_config(run_config | {"algorithm": "moon", "num-rounds": 2})
    unet, data = config.unet, config.data
    names = ("time_embedding", "conv_in", "mid_block", "up_blocks.0", "", "no such module", "up_blocks")
    time, conv_in, middle, last, whole, unknown, never_called = (share_of_pass(unet, data, name) for name in names)
    assert 0 < time < conv_in < middle < last < whole == unknown == never_called == 1
    channels = unet.block_out_channels[0]
    of_time, of_conv = channels * 4 * channels + (4 * channels) ** 2, data.image_size**2 * 9 * channels
    assert conv_in / time == pytest.approx((of_time + of_conv) / of_time)
    first, later = (MoonHook.training_images(config, 100, 3, is_first=is_first) for is_first in (True, False))
    assert later == pytest.approx(first * (1 + 2 / 3 * middle))


def test_the_frozen_models_are_in_evaluation_mode_and_the_clients_own():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    config = load_config(default_run_config() | {"moon-representation": ""})
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    previous = {name: value + 1 for name, value in weights.items()}
    hook = MoonHook(LocalRound(config, 0, 2, weights, state={"previous": previous}))
    hook.on_start(model)
    local, glob, prev = (view.model for view in hook._views)
    assert (local.training, glob.training, prev.training) == (True, False, False)
    assert torch.equal(glob[0].bias, weights["0.bias"])
    assert torch.equal(prev[0].bias, previous["0.bias"])
    assert not any(p.requires_grad for p in [*glob.parameters(), *prev.parameters()])


def test_a_loss_that_never_calls_the_model_is_told():
    def loss(model, batch):
        return ((model.x - batch[1]) ** 2).mean()

    with pytest.raises(RoundFailedError, match="the loss never calls the model"):
        simulate("moon", Point(), loss, CLIENTS, 2, 1, 0.1)


def test_a_model_without_a_forward_method_is_told():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = nn.Parameter(torch.zeros(3))

    with pytest.raises(ConfigError, match='Bare has no method "forward"'):
        simulate("moon", Bare(), lambda model, batch: ((model.x - batch[1]) ** 2).mean(), CLIENTS, 2, 1, 0.1)


def test_the_model_is_left_unwatched_after_a_round_that_failed(config):
    models = []

    class Fails(MoonHook):
        def on_start(self, model):
            super().on_start(model)
            if model._forward_pre_hooks:  # in round 1 there is nothing to compare with
                models.append(model)

        def add_to_loss(self, loss, model, batch):
            if models:
                raise ValueError("broken")
            return super().add_to_loss(loss, model, batch)

    class Mutant(Moon):
        hook = Fails

    with pytest.raises(RoundFailedError, match="broken"):
        run(Mutant)
    assert models
    assert not any(model._forward_pre_hooks or model._forward_hooks for model in models)


def test_its_config_keys_reach_it(config, run_config):
    assert dataclasses.asdict(config.moon) == {"mu": 1.0, "temperature": 0.5, "representation": "mid_block"}
    changed = load_config(run_config | {"moon-mu": 2.0, "moon-temperature": 0.1})
    assert (changed.moon.mu, changed.moon.temperature) == (2.0, 0.1)
    assert not same(run("moon", mu=MU, temperature=0.5), run("moon", mu=MU, temperature=0.1), 1e-4)
