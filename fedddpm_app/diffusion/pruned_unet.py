"""A pruned ``UNet2DModel`` that diffusers saves and loads; ``from_pretrained`` needs this package to be installed.

The sinusoidal embedding of the time keeps its size in a pruned model, so that no settings of a ``UNet2DModel`` give its
shapes. Its config therefore has the shapes themselves.
"""

import inspect
from typing import Any

import torch
from diffusers import ModelMixin, UNet2DModel

from fedddpm_app.shapes import fit_model, fits

__all__ = ["ModelMixin", "PrunedUNet2DModel", "with_own_config"]  # diffusers looks here for the base of the class


def _with_shapes(signature: inspect.Signature) -> inspect.Signature:
    shapes = inspect.Parameter("shapes", inspect.Parameter.KEYWORD_ONLY)
    return signature.replace(parameters=[*signature.parameters.values(), shapes])


class PrunedUNet2DModel(UNet2DModel):  # type: ignore[misc]
    """A ``UNet2DModel`` whose layers have fewer channels than its other settings say.

    Parameters
    ----------
    shapes : dict of str to list of int
        The shape of every weight.
    **settings
        Those of a ``UNet2DModel``.
    """

    def __init__(self, shapes: dict[str, list[int]], **settings: Any) -> None:
        super().__init__(**settings)
        fit_model(self, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
        self.register_to_config(shapes=shapes)

    # diffusers reads here which settings config.json may have
    __init__.__signature__ = _with_shapes(inspect.signature(UNet2DModel.__init__))  # type: ignore[attr-defined]


def with_own_config(model: UNet2DModel) -> UNet2DModel:
    """Return a model whose config gives its shapes: itself, or a ``PrunedUNet2DModel`` with the same weights."""
    with torch.device("meta"):
        described = type(model).from_config(model.config)
    if fits(described, model.state_dict()):
        return model
    settings = {key: value for key, value in model.config.items() if not key.startswith("_")}
    pruned = PrunedUNet2DModel({name: [*tensor.shape] for name, tensor in model.state_dict().items()}, **settings)
    pruned.load_state_dict(model.state_dict())
    return pruned.to(model.device).train(model.training)
