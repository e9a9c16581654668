"""Structured pruning: which channels leave, what the small model computes, and how it is stored."""

import copy

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.models.attention_processor import Attention
from torch import nn

from fedddpm_app.config import ConfigError
from fedddpm_app.diffusion.pipelines import load_pipeline
from fedddpm_app.diffusion.pruned_unet import PrunedUNet2DModel, with_own_config
from fedddpm_app.diffusion.pruning import channel_norms, check_prunable, prunable_weights, prune
from fedddpm_app.shapes import fit_model
from fedddpm_app.weights import load_into, num_bytes, snapshot


def unet(channels=(16, 32), groups=4, attention=False, classes=None):
    down, up = ("AttnDownBlock2D", "AttnUpBlock2D") if attention else ("DownBlock2D", "UpBlock2D")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=channels,
            layers_per_block=1,
            down_block_types=("DownBlock2D", down),
            up_block_types=(up, "UpBlock2D"),
            add_attention=attention,
            norm_num_groups=groups,
            num_class_embeds=classes,
        )


def smaller(model, weights):
    small = fit_model(copy.deepcopy(model), weights)
    load_into(small, weights)
    return small.eval()


@torch.no_grad()
def output(model, classes=None):
    random = torch.Generator().manual_seed(1)
    images = torch.randn(2, 1, 8, 8, generator=random).to(next(model.parameters()))
    labels = None if classes is None else torch.tensor([1, classes - 1])
    return model(images, torch.tensor([3, 40]), labels).sample


@pytest.mark.parametrize(("groups", "classes"), [(4, None), (8, 3)])
def test_the_small_model_is_the_full_one_with_the_pruned_channels_zero(monkeypatch, groups, classes):
    """Without the statistics of the norms, in which zeros count: they keep their scale and shift here."""
    monkeypatch.setattr(
        "torch.nn.functional.group_norm",
        lambda x, _, weight, bias, __: x * weight[:, None, None] + bias[:, None, None],
    )
    full = unet(groups=groups, classes=classes).double().eval()
    weights = snapshot(full)
    pruning = prune(copy.deepcopy(full), weights, 0.25)
    zeroed = {}
    for name, tensor in weights.items():
        kept = torch.zeros(tensor.numel(), dtype=torch.bool)
        kept[pruning.positions[name].reshape(-1)] = True
        zeroed[name] = tensor * kept.view_as(tensor)
    small = smaller(full, pruning.apply(weights))
    load_into(full, zeroed)
    assert output(small, classes).abs().max() > 0.01
    assert (output(small, classes) - output(full, classes)).abs().max() < 1e-12


def test_the_least_channels_leave_in_the_same_place_of_every_norm_group():
    model = unet()
    name = "mid_block.resnets.0.conv1.weight"  # 32 channels in 4 groups of 8: two of each group leave
    weights = snapshot(model)
    weak = torch.tensor([group * 8 + place for group in range(4) for place in (2, 5)])
    weights[name][weak] *= 1e-3
    kept = prune(model, weights, 0.25).positions[name] // weights[name][0].numel()
    channels = kept.flatten(1)[:, 0].tolist()
    assert channels == [k for k in range(32) if k not in weak.tolist()]


def test_one_pruning_applies_to_any_weights_of_the_model():
    """The moving average loses the channels that the weights lose."""
    model = unet(classes=3)
    weights = snapshot(model)
    pruning = prune(model, weights, 0.25)
    marked = {name: torch.arange(tensor.numel()).view_as(tensor) for name, tensor in weights.items()}
    for name, tensor in pruning.apply(marked).items():
        assert torch.equal(weights[name].reshape(-1)[tensor], pruning.apply(weights)[name])


@pytest.mark.parametrize(
    ("groups", "ratio", "removed"),
    [(4, 0.25, (0.25, 0.25)), (8, 0.5, (0.5, 0.5)), (8, 0.3, (0.3125, 0.5)), (8, 0.25, (0.25, 0.5))],
)
def test_norm_groups_set_the_steps(groups, ratio, removed):
    """With 8 groups, 16 channels are 8 groups of two, of which one leaves; the time embedding has no groups."""
    pruning = prune(unet(groups=groups), snapshot(unet(groups=groups)), ratio)
    assert pruning.removed == removed
    said = "every layer lost" if removed[0] == removed[1] else f"not prune-ratio = {ratio}: a layer loses multiples"
    assert said in pruning.describe(ratio)


def macs_by_hand(model):
    """Convolutions and linear layers, from the sizes of their outputs."""
    found = []

    def count(layer, _, out):
        found.append(out.numel() * layer.weight[0].numel())

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model(torch.zeros(1, 1, 8, 8), torch.ones(1).long())
    for handle in handles:
        handle.remove()
    return sum(found)


def test_sizes_and_what_stays():
    model = unet()
    weights = snapshot(model)
    pruning = prune(copy.deepcopy(model), weights, 0.25)
    small = smaller(model, pruning.apply(weights))
    shapes = {name: tuple(tensor.shape) for name, tensor in pruning.apply(weights).items()}
    assert shapes["conv_in.weight"] == (12, 1, 3, 3)
    assert shapes["conv_out.weight"] == (1, 12, 3, 3)
    assert shapes["time_embedding.linear_1.weight"] == (48, 16)
    for size, net in ((pruning.before, model), (pruning.after, small)):
        assert size.parameters == sum(p.numel() for p in net.parameters())
        assert size.num_bytes == num_bytes(snapshot(net)) == 4 * size.parameters
        assert size.macs == pytest.approx(macs_by_hand(net), rel=0.05)  # the library also counts biases and norms
    report = pruning.report()
    assert report["prune/parameters"] == pruning.after.parameters < pruning.before.parameters
    assert report["prune/parameters_before"] == pruning.before.parameters


def test_a_pruned_pipeline_is_stored_and_loaded(tmp_path):
    """With attention: its heads stay, each with fewer channels."""
    model = unet(attention=True, classes=3)
    small = smaller(model, prune(copy.deepcopy(model), snapshot(model), 0.25).apply(snapshot(model)))
    assert with_own_config(model) is model
    full, pruned = ([m for m in net.modules() if isinstance(m, Attention)] for net in (model, small))
    assert [layer.heads for layer in pruned] == [layer.heads for layer in full]
    assert len(full) > 0
    for layer, before in zip(pruned, full, strict=True):
        assert layer.to_q.out_features < before.to_q.out_features
        assert layer.to_q.out_features % layer.heads == 0
    DDPMPipeline(unet=with_own_config(small), scheduler=DDPMScheduler()).save_pretrained(tmp_path)
    for pipeline in (DDPMPipeline.from_pretrained(tmp_path), load_pipeline(tmp_path)):
        assert isinstance(pipeline.unet, PrunedUNet2DModel)
        assert torch.equal(output(pipeline.unet, 3), output(small, 3))
    again = pipeline.unet
    assert with_own_config(again) is again


def test_the_penalty_is_by_channel_and_leaves_the_output_layer_alone():
    model = unet().double()
    layers = prunable_weights(model)
    assert not any(layer is model.conv_out.weight for layer in layers)
    matrices = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == len(matrices) - 1
    channel_norms(layers).backward()
    for weight in layers:
        rows = weight.detach().flatten(1)
        closed = rows / rows.pow(2).sum(1, keepdim=True).sqrt()
        assert (weight.grad.flatten(1) - closed).abs().max() < 1e-12
    assert channel_norms([torch.tensor([[3.0, 4.0], [0.0, 0.0]])]) == 5.0


def test_another_model_is_refused():
    with pytest.raises(ConfigError, match="prune-ratio: a Linear cannot be pruned, only a UNet2DModel; use"):
        check_prunable(nn.Linear(2, 2))
