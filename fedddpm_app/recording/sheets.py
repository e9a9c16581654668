"""Sheets of images as one PNG."""

from pathlib import Path

import torch
from diffusers.utils import make_image_grid
from PIL import Image
from torch import Tensor

_MIN_TILE_PIXELS = 48
_GAP_GREY = 64
_PAIRS_PER_ROW = 10


def save_sheet(images: Tensor, path: Path, columns: int = 10) -> None:
    """Write images as a grid; small images are enlarged without smoothing.

    Parameters
    ----------
    images : Tensor
        uint8, shape (N, C, H, W), C in {1, 3}; in reading order. Grey tiles complete the last row.
    path : Path
        The PNG; its folder is created.
    columns : int
        Images per row, >= 1.
    """
    tiles = [_tile(image) for image in images]
    columns = max(1, min(columns, len(tiles)))
    rows = -(-len(tiles) // columns)
    if tiles:
        blank = Image.new("RGB", tiles[0].size, (_GAP_GREY,) * 3)
        tiles += [blank] * (rows * columns - len(tiles))
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image_grid(tiles, rows, columns).save(path)


def save_pairs(generated: Tensor, train: Tensor, path: Path) -> None:
    """Write generated images (odd rows) above their training images (even rows), each uint8 (P, C, H, W)."""
    tiles = []
    for pair in zip(torch.split(generated, _PAIRS_PER_ROW), torch.split(train, _PAIRS_PER_ROW), strict=True):
        gap = torch.full((_PAIRS_PER_ROW - len(pair[0]), *generated.shape[1:]), _GAP_GREY, dtype=torch.uint8)
        tiles += [part for each in pair for part in (each, gap)]
    save_sheet(torch.cat(tiles), path, _PAIRS_PER_ROW)


def to_pil(image: Tensor) -> Image.Image:
    """Turn a uint8 (C, H, W) tensor into a grey or RGB picture of the same size."""
    pixels = image.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _tile(image: Tensor) -> Image.Image:
    scale = max(1, -(-_MIN_TILE_PIXELS // image.shape[-1]))
    enlarged = image.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    framed = torch.nn.functional.pad(enlarged, (1, 1, 1, 1), value=_GAP_GREY)
    return to_pil(framed).convert("RGB")
