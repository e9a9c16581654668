"""The model factory: a diffusers ``UNet2DModel`` from the run config, with seeded weights."""

import functools
import math

import torch
from diffusers import UNet2DModel
from torch import nn

from fedddpm_app.config import DataConfig, UNetConfig
from fedddpm_app.seeding import derive_seed
from fedddpm_app.weights import num_bytes


def create_unet(unet: UNetConfig, data: DataConfig, seed: int) -> UNet2DModel:
    """Create the denoising model of a run.

    Parameters
    ----------
    unet : UNetConfig
        Channels per resolution level, layers, attention, normalisation.
    data : DataConfig
        Image size (pixels) and channels; with ``class_conditional`` the model takes ``class_labels``
        in [0, ``num_class_embeds``), the last of which is the null class if there is ``class_dropout``, and adds their
        embedding to the time embedding.
    seed : int
        The run's seed; equal seeds give equal initial weights.

    Returns
    -------
    UNet2DModel
        float32 on the CPU, in training mode; maps (B, C, H, W) and t (B,) to (B, C, H, W).
    """
    levels = range(len(unet.block_out_channels))
    attention = [data.image_size >> level in unet.attention_sizes for level in levels]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "initial-weights"))
        return UNet2DModel(
            sample_size=data.image_size,
            in_channels=data.image_channels,
            out_channels=data.image_channels,
            block_out_channels=unet.block_out_channels,
            layers_per_block=unet.layers_per_block,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            add_attention=any(attention),
            norm_num_groups=unet.norm_groups,
            dropout=unet.dropout,
            num_class_embeds=data.num_class_embeds,
        ).train()


def is_denoiser(model: nn.Module) -> bool:
    """Return whether images can be sampled from a model, which is whether it is a ``UNet2DModel``."""
    return isinstance(model, UNet2DModel)


@functools.lru_cache(maxsize=8)
def images_as_models(unet: UNetConfig, data: DataConfig, count: int) -> float:
    """Return the size of ``count`` images, one byte per value, beside that of a model; none is allocated."""
    with torch.device("meta"):
        model = create_unet(unet, data, seed=0)
    return count * math.prod(data.image_shape) / num_bytes(model.state_dict())
