"""The architecture of a model as the shapes of its weights: structured pruning changes the shapes, and keeps the names.

A model is fitted to weights of other shapes in place, so that whoever receives weights can build their model: no
further description of the architecture travels.
"""

import hashlib

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fedddpm_app.weights import Weights, WeightsMismatchError


def architecture(weights: Weights) -> str:
    """Return a digest (12 hexadecimal digits) of the names, shapes and dtypes of weights, in any order of the names."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(f"{name} {tuple(weights[name].shape)} {weights[name].dtype} ".encode())
    return found.hexdigest()[:12]


def fits(model: nn.Module, weights: Weights) -> bool:
    """Return whether a model's weights have the names and shapes of ``weights``."""
    state = model.state_dict()
    return state.keys() == weights.keys() and all(state[name].shape == weights[name].shape for name in state)


def fit_model(model: nn.Module, weights: Weights) -> nn.Module:
    """Give a model the shapes of ``weights`` in place, on its device and in its dtypes; the model is returned.

    A tensor whose shape changes is replaced by one with undefined values: load weights afterwards. An optimiser of the
    model then refers to tensors that the model does not have any more.

    Raises
    ------
    WeightsMismatchError
        When the names differ.
    """
    names = model.state_dict().keys()
    if names != weights.keys():
        odd = sorted(names ^ weights.keys())[:3]
        raise WeightsMismatchError(f"parameter names differ, for example {', '.join(odd)}")
    replaced: dict[int, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        _resize(module, f"{prefix}." if prefix else "", weights, replaced)
    for module in reversed([*model.modules()]):  # layers before the blocks that contain them
        _follow(module)
    return model


def _resize(module: nn.Module, prefix: str, weights: Weights, replaced: dict[int, nn.Parameter]) -> None:
    """Replace a module's own tensors whose shapes differ; tied parameters stay tied."""
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter.shape != weights[prefix + name].shape:
            if id(parameter) not in replaced:
                empty = _empty(parameter, weights[prefix + name])
                replaced[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
            module._parameters[name] = replaced[id(parameter)]
    for name, buffer in module._buffers.items():
        stored = buffer is not None and name not in module._non_persistent_buffers_set
        if stored and buffer.shape != weights[prefix + name].shape:  # type: ignore[union-attr]
            module._buffers[name] = _empty(buffer, weights[prefix + name])  # type: ignore[arg-type]


def _empty(old: Tensor, like: Tensor) -> Tensor:
    return torch.empty(like.shape, dtype=old.dtype, device=old.device)


def _follow(module: nn.Module) -> None:
    """Set the attributes in which a layer repeats the sizes of its weights."""
    if isinstance(module, _ConvNd):
        out, into = (1, 0) if module.transposed else (0, 1)
        scale = {into: 1, out: 1} | {1: module.groups}  # the second dimension is that of one group
        module.out_channels = module.weight.shape[out] * scale[out]
        module.in_channels = module.weight.shape[into] * scale[into]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm) and module.affine:
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.modules.batchnorm._NormBase) and module.affine:
        module.num_features = len(module.weight)
    elif isinstance(convolution := getattr(module, "conv", None), nn.Conv2d) and hasattr(module, "channels"):
        # diffusers' Downsample2D and Upsample2D check their input by it
        vars(module).update(channels=convolution.in_channels, out_channels=convolution.out_channels)
