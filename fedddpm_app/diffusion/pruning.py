"""Structured pruning of a ``UNet2DModel`` with torch-pruning: whole channels leave every layer that shares them.

Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023, https://arxiv.org/abs/2301.12900 (the library), and
Diff-Pruning, https://arxiv.org/abs/2305.10924 (diffusion models). Each group of coupled layers loses its channels of
least importance: the sum over these layers of the squared weights of a channel. ``conv_out`` and the
input keep their channels.

GroupNorm sets the steps. A norm of G groups keeps G groups of equal size, so that a layer of C channels loses whole
multiples of G, the same positions in each group. Of the C / G channels of a group, floor((1 - ratio) C / G) stay: with
8 groups, 16 and 32 channels lose half of their channels at a ratio of 0.3; with 4 groups and a ratio of 0.25 they lose
a quarter. A layer that would lose all its channels keeps them. ``Pruning.removed`` has the shares.
"""

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from fedddpm_app.config import ConfigError, DataConfig, UNetConfig
from fedddpm_app.diffusion.unet import create_unet, is_denoiser
from fedddpm_app.shapes import fit_model
from fedddpm_app.weights import Weights, load_into, num_bytes, snapshot

_KEPT = "conv_out"
_NEAR = 0.005  # shares of channels that are reported as equal


@dataclass(frozen=True)
class ModelSize:
    """The size of a model.

    Attributes
    ----------
    parameters : int
        Trainable numbers.
    macs : int
        Multiply-accumulate operations of one call with one image, as torch-pruning counts them, by layers: those inside
        attention, between queries, keys and values, are not counted.
    num_bytes : int
        Bytes of the weights.
    """

    parameters: int
    macs: int
    num_bytes: int


@dataclass(frozen=True)
class Pruning:
    """The channels that a pruning keeps; it can be applied to any weights of the full model.

    Attributes
    ----------
    positions : dict of str to Tensor
        For each weight, int64 of its new shape: the flat positions of the kept values in the full tensor.
    removed : tuple of float
        The least and the largest share of the output channels that a layer lost; ``conv_out`` is not counted.
    before, after : ModelSize
        The sizes of the full and of the pruned model.
    """

    positions: dict[str, Tensor]
    removed: tuple[float, float]
    before: ModelSize
    after: ModelSize

    def apply(self, weights: Weights) -> Weights:
        """Return the kept values of weights of the full model."""
        return {name: tensor.reshape(-1)[self.positions[name]] for name, tensor in weights.items()}

    def report(self) -> dict[str, object]:
        """Return sizes and shares for a line of ``stats.jsonl``."""
        sizes = {"": asdict(self.after), "_before": asdict(self.before)}
        report = {f"prune/{name}{when}": value for when, size in sizes.items() for name, value in size.items()}
        return report | {"prune/least_removed": self.removed[0], "prune/largest_removed": self.removed[1]}

    def describe(self, ratio: float) -> str:
        """Return a sentence, which says so if the channels lost are not the share ``ratio`` of them."""
        (least, largest), before, after = self.removed, self.before, self.after
        text = f"pruned from {before.parameters} to {after.parameters} parameters"
        if max(largest - ratio, ratio - least) < _NEAR:
            return f"{text}; every layer lost {ratio:.1%} of its channels"
        return (
            f"{text}; layers lost {least:.1%} to {largest:.1%} of their channels, not prune-ratio = {ratio}: a layer "
            "loses multiples of unet-norm-groups; use fewer groups, or a ratio that fits"
        )


def prune(model: nn.Module, weights: Weights, ratio: float) -> Pruning:
    """Choose the channels that leave a model with given weights.

    Parameters
    ----------
    model : nn.Module
        A ``UNet2DModel`` of the full size, on the CPU; its values, and afterwards its shapes, are changed.
    weights : Weights
        The weights whose size decides.
    ratio : float
        In (0, 1): the share of the channels to remove, see the module's text for the share that is removed.

    Raises
    ------
    ConfigError
        When the model is not a ``UNet2DModel``.
    """
    import torch_pruning

    check_prunable(model)
    load_into(model, weights)
    inputs, full = _example_inputs(model), copy.deepcopy(model)
    before = _size(model.eval(), inputs)
    pruner = torch_pruning.pruner.BasePruner(
        model,
        inputs,
        torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[model.get_submodule(_KEPT)],
        num_heads=_heads(model),
        in_channel_groups={},
        out_channel_groups={},
    )
    pruner.step()
    fit_model(model, model.state_dict())
    positions = _positions(full.eval(), inputs, pruner.DG.pruning_history())
    return Pruning(positions, _removed(weights, positions), before, _size(model, inputs))


def check_prunable(model: nn.Module) -> None:
    """Raise ``ConfigError`` for a model that cannot be pruned."""
    if not is_denoiser(model):
        raise ConfigError(
            f"prune-ratio: a {type(model).__name__} cannot be pruned, only a UNet2DModel; use prune-ratio = 0.0."
        )


def prunable_weights(model: nn.Module) -> list[Tensor]:
    """Return the weights whose channels can be pruned: those of convolutions and linear layers except ``conv_out``."""
    return [
        layer.weight
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and name != _KEPT
    ]


def channel_norms(weights: Sequence[Tensor]) -> Tensor:
    """Return the sum of the L2 norms of all output channels of the weights, a scalar: a group lasso."""
    return torch.stack([torch.linalg.vector_norm(weight.flatten(1), dim=1).sum() for weight in weights]).sum()


def _example_inputs(model: nn.Module) -> tuple[Tensor, ...]:
    """Return the arguments of a call with one image, which is not read."""
    config: Any = model.config
    image = torch.zeros(1, config.in_channels, config.sample_size, config.sample_size).to(next(model.parameters()))
    label = (torch.zeros(1, dtype=torch.int64),) if config.num_class_embeds else ()
    return image, torch.ones(1, dtype=torch.int64), *label


def _heads(model: nn.Module) -> dict[nn.Module, int]:
    """Return the heads of every query, key and value layer, all of which stay: each loses channels."""
    blocks = [module for module in model.modules() if isinstance(module, Attention)]
    return {layer: block.heads for block in blocks for layer in (block.to_q, block.to_k, block.to_v)}


def _positions(full: nn.Module, inputs: tuple[Tensor, ...], history: Sequence[object]) -> dict[str, Tensor]:
    """Repeat a pruning on a model whose values are their own positions."""
    import torch_pruning

    full = full.double()
    with torch.no_grad():
        for tensor in full.state_dict().values():
            tensor.copy_(torch.arange(tensor.numel(), dtype=torch.float64).view_as(tensor))
    doubles = tuple(value.double() if value.is_floating_point() else value for value in inputs)
    graph = torch_pruning.DependencyGraph().build_dependency(full, doubles)
    graph.load_pruning_history(history)
    return {name: tensor.long() for name, tensor in snapshot(full).items()}


def _removed(weights: Weights, positions: Mapping[str, Tensor]) -> tuple[float, float]:
    """Return the least and the largest share of output channels that a convolution or linear layer lost."""
    layers = [
        name for name, tensor in weights.items() if tensor.dim() > 1 and not name.startswith((_KEPT, "class_embedding"))
    ]
    shares = [1.0 - len(positions[name]) / len(weights[name]) for name in layers]
    return min(shares), max(shares)


def _size(model: nn.Module, inputs: tuple[Tensor, ...]) -> ModelSize:
    import torch_pruning

    macs, _ = torch_pruning.utils.count_ops_and_params(model, inputs)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelSize(parameters, int(macs), num_bytes(dict(model.state_dict())))


@functools.lru_cache(maxsize=8)
def kept_shares(unet: UNetConfig, data: DataConfig, ratio: float) -> tuple[float, float]:
    """Return the shares of parameters and of multiply-adds that a pruning keeps; they do not depend on the values."""
    model = create_unet(unet, data, seed=0)
    pruning = prune(model, snapshot(model), ratio)
    before, after = pruning.before, pruning.after
    return after.parameters / before.parameters, after.macs / before.macs
