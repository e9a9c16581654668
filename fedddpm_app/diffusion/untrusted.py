"""A pipeline folder from somewhere else: what its files name and state is checked before diffusers reads them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin, UNet2DModel, VQModel

from fedddpm_app import limits
from fedddpm_app.diffusion import pruned_unet
from fedddpm_app.diffusion.conditional import ClassConditionalPipeline
from fedddpm_app.disk.bounded import check_tensors, read_object
from fedddpm_app.weights import num_bytes

INDEX = "model_index.json"
_LIBRARIES = {"diffusers": diffusers, pruned_unet.__name__: pruned_unet}  # whose classes a pipeline may name
_MODELS = (UNet2DModel, VQModel)  # of the pipelines that generate pictures from nothing but a number of them


def check_pipeline(folder: Path) -> None:
    """Check a pipeline's classes, the numbers in its configs, and the sizes of its models.

    Raises
    ------
    OSError
        When a file is missing or cannot be read.
    ValueError
        When it names a class from elsewhere, or states a larger model than its files hold.
    TypeError, RuntimeError, and others
        When a model cannot be made from its config.
    """
    index = read_object(folder / INDEX)
    if not hasattr(diffusers, class_name(folder)) and class_name(folder) != ClassConditionalPipeline.__name__:
        raise ValueError(f"{INDEX} names the class {index.get('_class_name')!r}, which diffusers does not have")
    for name, entry in index.items():
        if name.startswith("_") or not isinstance(entry, list) or entry == [None, None]:
            continue
        if len(entry) != 2 or entry[0] not in _LIBRARIES or not name.isidentifier():
            raise ValueError(f"{INDEX} names {name} = {entry!r}: only components of diffusers are loaded")
        kind = getattr(_LIBRARIES[entry[0]], str(entry[1]))
        if not isinstance(kind, type) or not issubclass(kind, (*_MODELS, SchedulerMixin)):
            usable = " and ".join(each.__name__ for each in _MODELS)
            raise ValueError(f"{INDEX} names {name} = {entry!r}: only schedulers, and models of {usable}, are loaded")
        _check_component(folder / name, kind)


def class_name(folder: Path) -> str:
    """Return the name of a pipeline's class, as its folder states it; errors as in ``check_pipeline``."""
    return str(read_object(folder / INDEX).get("_class_name"))


def _check_component(folder: Path, kind: Any) -> None:
    """Check the configs and the weights in the folder of a component of class ``kind``."""
    for path in folder.glob("*.json"):
        _check_numbers(read_object(path), path)
    if not issubclass(kind, _MODELS):
        return
    stored = sum(check_tensors(path) for path in folder.glob("*.safetensors"))
    with torch.device("meta"):
        stated = num_bytes(kind.from_config(read_object(folder / "config.json")).state_dict())
    if stated > limits.MODEL_RATIO * stored + limits.MIB:
        raise ValueError(
            f"{folder.name}/config.json states a model of {stated:,} bytes, but its safetensors hold {stored:,} bytes"
        )


def _check_numbers(config: dict[str, Any], path: Path) -> None:
    """Raise ``ValueError`` if a number, or the length of a list, is larger than that of any published pipeline."""
    for key, value in _entries(config):
        where = f"{path.parent.name}/{path.name} states {key}"
        if isinstance(value, list) and len(value) > (longest := _longest(key)):
            raise ValueError(f"{where} of {len(value):,} values, more than {longest:,}")
        if isinstance(value, int | float) and not value <= (largest := _largest(key)):  # also NaN
            raise ValueError(f"{where} = {value:,}, which is not at most {largest:,}")
        if key == "sample_size" and isinstance(value, str):
            raise ValueError(f"{where} = {value!r}, which is a text instead of a number of pixels")


def _longest(key: str) -> int:
    """Return the most values that a list in a config may have."""
    if key == "trained_betas":
        return limits.PIPELINE_NUMBER  # one for each diffusion step
    return limits.PIPELINE_LAYERS if _counts_layers(key) else limits.PIPELINE_LIST


def _largest(key: str) -> int:
    """Return the largest number that a config may state."""
    if key == "sample_size":
        return limits.IMAGE_SIDE
    return limits.PIPELINE_LAYERS if _counts_layers(key) and key != "block_out_channels" else limits.PIPELINE_NUMBER


def _counts_layers(key: str) -> bool:
    return "." not in key and ("layers" in key or "block" in key)  # names of weights have dots


def _entries(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of a config, and each value in a list under the list's key."""
    waiting = [*config.items()]
    while waiting:
        key, value = waiting.pop()
        yield key, value
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(key, item) for item in value]
