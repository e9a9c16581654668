"""The parts of a denoising model, by parameter name: encoder, bottleneck and decoder.

For a ``UNet2DModel``, the parts are those of de Goede et al. 2024 (https://arxiv.org/abs/2406.12575). The encoder
consists of ``conv_in``, the embeddings and the down blocks. The bottleneck is the mid block. The decoder consists of
the up blocks, ``conv_norm_out`` and ``conv_out``.
"""

from collections.abc import Mapping

from torch import nn

from fedddpm_app.config import ConfigError
from fedddpm_app.diffusion.unet import is_denoiser

ENCODER, BOTTLENECK, DECODER = PARTS = ("encoder", "bottleneck", "decoder")
_OF_UNET = {
    **dict.fromkeys(("conv_in", "time_proj", "time_embedding", "class_embedding", "down_blocks"), ENCODER),
    "mid_block": BOTTLENECK,
    **dict.fromkeys(("up_blocks", "conv_norm_out", "conv_out"), DECODER),
}


def parts(model: nn.Module) -> dict[str, str]:
    """Return the part of each weight of a model, by its name in ``state_dict``.

    A model other than a ``UNet2DModel`` gives its parts by a method ``parts`` without arguments, which returns such a
    mapping. Each weight belongs to exactly one part.

    Raises
    ------
    ConfigError
        When the model has no parts, a weight has none or an unknown one, a part has no weights, or a parameter with
        several names is in several parts.
    """
    own = getattr(model, "parts", None)
    if callable(own):
        found = dict(own())
    elif is_denoiser(model):
        prefixes = {name: name.partition(".")[0] for name in model.state_dict()}
        found = {name: _OF_UNET[prefix] for name, prefix in prefixes.items() if prefix in _OF_UNET}
    else:
        raise ConfigError(
            f"the parts of a {type(model).__name__} are not known: give the model a method parts() that returns "
            '"encoder", "bottleneck" or "decoder" for each name in its state_dict().'
        )
    _check(model, found)
    return {name: found[name] for name in model.state_dict()}


def _check(model: nn.Module, found: Mapping[str, str]) -> None:
    kind, names = type(model).__name__, model.state_dict().keys()
    if odd := sorted(names ^ found.keys())[:3]:
        raise ConfigError(
            f"the parts of a {kind} are not those of its weights, for example {', '.join(odd)}: each name in its "
            "state_dict() must be in one part."
        )
    if unknown := sorted(set(found.values()) - set(PARTS)):
        raise ConfigError(f'"{unknown[0]}" is not a part of a {kind}: use one of {", ".join(PARTS)}.')
    if missing := [part for part in PARTS if part not in found.values()]:
        raise ConfigError(f"a {kind} has no {missing[0]}: each part must have weights.")
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if found[other] != found[name]:
            raise ConfigError(
                f"{other} and {name} of a {kind} are one parameter, but are in the parts {found[other]} and "
                f"{found[name]}: put them into one part."
            )
