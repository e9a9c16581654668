"""Sheets of images as one PNG: a grid of tiles with a title above it and texts around it.

The grid starts at the left edge; row labels are to the right of it. The PNG's text ``grid`` describes it, so that
``read_tiles`` returns the tiles without the texts.
"""

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from fedddpm_app.disk.durable import replacing
from fedddpm_app.recording.style import WARNING, font_file, printable

_MIN_TILE_PIXELS = 64
_GAP_GREY = 64
_FONT_PIXELS = 15
_LINE_PIXELS = 20
_MARGIN = 8
_MIN_WIDTH = 480  # of a sheet with a title
_GRID = "grid"
_PAIRS_PER_ROW = 10
_MAX_TEXT = 1000
_MAX_LABEL = 60  # characters: two shortened names


@dataclass(frozen=True)
class Texts:
    """The texts of a sheet.

    Attributes
    ----------
    title : str
        Above the grid; broken into lines.
    rows : sequence of str
        To the right of each row; empty without labels.
    below : sequence of str
        Under each tile, shortened to its width; empty without texts.
    marked : collection of int
        The tiles whose text and frame have the colour of a warning.
    empty : collection of int
        The tiles that are left white, which fill up rows.
    """

    title: str = ""
    rows: Sequence[str] = ()
    below: Sequence[str] = ()
    marked: frozenset[int] = frozenset()
    empty: frozenset[int] = frozenset()


def save_sheet(images: Tensor, path: Path, columns: int = 10, texts: Texts | None = None) -> None:
    """Write images as a grid; small images are enlarged without smoothing.

    Parameters
    ----------
    images : Tensor
        uint8, shape (N, C, H, W), C in {1, 3}; in reading order.
    path : Path
        The PNG; its folder is created. Without images, no PNG is written.
    columns : int
        Images per row, >= 1.
    texts : Texts, optional
        The texts around the grid.
    """
    if len(images):
        _save([_tile(image) for image in images], path, max(1, min(columns, len(images))), texts or Texts())


def save_pairs(generated: Tensor, train: Tensor, ratios: Tensor, threshold: float, path: Path, about: str = "") -> None:
    """Write generated images above their nearest training images, with the ratio of their distances.

    Parameters
    ----------
    generated, train : Tensor
        uint8, shape (P, C, H, W) each.
    ratios : Tensor
        Shape (P,), of ``evaluation.memorization``; a pair below ``threshold``, and an exact copy, is marked.
    threshold : float
        The calibrated ratio.
    path : Path
        The PNG; its folder is created.
    about : str
        The origin of the images, for the title.
    """
    images, below, rows, marked, empty = [], [], [], set[int](), set[int]()
    size = min(_PAIRS_PER_ROW, len(generated))
    copies = [ratio < threshold or ratio == 0 for ratio in ratios.tolist()]
    for start in range(0, len(generated), _PAIRS_PER_ROW):
        part = slice(start, start + _PAIRS_PER_ROW)
        marked |= {2 * start + k for k, copy in enumerate(copies[part]) if copy}
        marked |= {2 * start + size + k for k, copy in enumerate(copies[part]) if copy}
        shown = len(generated[part])
        empty |= {2 * start + k + row for k in range(shown, size) for row in (0, size)}
        gap = torch.zeros(size - shown, *generated.shape[1:], dtype=torch.uint8)
        images += [generated[part], gap, train[part], gap]
        numbers = [f"{ratio:.3f}" for ratio in ratios[part].tolist()]
        below += [*[""] * size, *numbers, *[""] * (size - len(numbers))]
        rows += ["generated", "nearest training image"]
    title = (
        f"{about and f'{about}. '}The {len(generated)} generated images that are closest to training images, closest "
        "first. Number: distance to the nearest training image, divided by the mean distance to the nearest ones "
        f"(docs/evaluation.md). {sum(copies)} of these {len(copies)} pairs are below the threshold of {threshold:.3f}"
        f"{' (red)' if any(copies) else ''}."
    )
    save_sheet(torch.cat(images), path, size, Texts(title, rows, below, frozenset(marked), frozenset(empty)))


def read_tiles(path: Path) -> list[Image.Image]:
    """Return the tiles of a sheet, in reading order; each is an image, enlarged, with a frame of one pixel.

    Raises
    ------
    ValueError
        If the file is not a sheet of ``save_sheet``.
    """
    with Image.open(path) as sheet:
        try:
            grid = json.loads(sheet.info[_GRID])
            width, height, columns = grid["tile_width"], grid["tile_height"], grid["columns"]
            _check_grid(sheet, grid)
            corners = [(k % columns * width, grid["row_tops"][k // columns]) for k in range(grid["images"])]
        except (LookupError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a sheet of images of this app: its PNG has no text `{_GRID}`") from error
        return [sheet.crop((x, y, x + width, y + height)) for x, y in corners]


def _check_grid(sheet: Image.Image, grid: dict[str, Any]) -> None:
    """Raise ``ValueError`` if a sheet is not large enough for the tiles that its text states."""
    width, height, columns, tops = grid["tile_width"], grid["tile_height"], grid["columns"], grid["row_tops"]
    fits = width > 0 < height and 0 < columns * width <= sheet.width and len(tops) <= sheet.height // height
    if not fits or not 0 <= grid["images"] <= columns * len(tops):
        raise ValueError("its tiles are more than it has pixels for")


def save_strip(
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    path: Path,
    title: str,
    largest: int,
    columns: Sequence[str] = (),
) -> None:
    """Write rows of tiles, each with its label; tiles wider than ``largest`` pixels are reduced.

    ``columns`` has the texts under the last row; empty without such texts.
    """
    tiles = [tile for _, row in rows for tile in row]
    if tiles[0].width > largest:
        tiles = [tile.resize((largest, largest), Image.Resampling.BOX) for tile in tiles]
    below = [""] * (len(tiles) - len(columns)) + [*columns]
    _save(tiles, path, len(rows[0][1]), Texts(title, [label for label, _ in rows], below))


def to_pil(image: Tensor) -> Image.Image:
    """Turn a uint8 (C, H, W) tensor into a grey or RGB picture of the same size."""
    pixels = image.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _tile(image: Tensor) -> Image.Image:
    scale = max(1, -(-_MIN_TILE_PIXELS // image.shape[-1]))
    enlarged = image.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    framed = torch.nn.functional.pad(enlarged, (1, 1, 1, 1), value=_GAP_GREY)
    return to_pil(framed).convert("RGB")


def _save(tiles: Sequence[Image.Image], path: Path, columns: int, texts: Texts) -> None:
    width, height = tiles[0].size
    written = [any(texts.below[start : start + columns]) for start in range(0, len(tiles), columns)]
    labels = [printable(label, _MAX_LABEL) or "" for label in texts.rows]
    right = max((_width(label) for label in labels), default=-2 * _MARGIN) + 2 * _MARGIN
    total = columns * width + right
    lines = _wrap(texts.title, max(total, _MIN_WIDTH) - 2 * _MARGIN)
    total, head = (max(total, _MIN_WIDTH), len(lines) * _LINE_PIXELS + 2 * _MARGIN) if lines else (total, 0)
    *tops, bottom = itertools.accumulate((height + _LINE_PIXELS * below for below in written), initial=head)
    sheet = Image.new("RGB", (total, bottom), "white")
    draw = ImageDraw.Draw(sheet)
    for k, tile in enumerate(tiles):
        x, y = k % columns * width, tops[k // columns]
        if k not in texts.empty:
            sheet.paste(tile, (x, y))
        if k in texts.marked:
            draw.rectangle((x, y, x + width - 1, y + height - 1), outline=WARNING, width=3)
        if written[k // columns]:
            _write_below(draw, texts, k, (x, y, width, height))
    for k, label in enumerate(labels):
        place = (columns * width + _MARGIN, tops[k] + height / 2)
        draw.text(place, label, "black", _font(label), anchor="lm")
    for k, line in enumerate(lines):
        place = (_MARGIN, _MARGIN + (k + 0.5) * _LINE_PIXELS)
        draw.text(place, line, "black", _font(line), anchor="lm")
    info = PngInfo()
    grid = {"images": len(tiles), "columns": columns, "tile_width": width, "tile_height": height, "row_tops": tops}
    info.add_text(_GRID, json.dumps(grid))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as work:  # and not through a link
        sheet.save(work, "PNG", pnginfo=info)


def _write_below(draw: ImageDraw.ImageDraw, texts: Texts, tile: int, box: tuple[int, int, int, int]) -> None:
    """Write the text of a tile in the middle below it; ``box`` is its corner, width and height."""
    x, y, width, height = box
    text = shortened(texts.below[tile] if tile < len(texts.below) else "", width)
    place = (x + width / 2, y + height + _LINE_PIXELS / 2)
    draw.text(place, text, WARNING if tile in texts.marked else "black", _font(text), anchor="mm")


def shortened(text: str, width: float) -> str:
    """Return a text with its middle left out, if it is wider than ``width`` pixels."""
    fitting = (shown for limit in range(len(text), 1, -1) if _width(shown := printable(text, limit) or "") <= width)
    return next(fitting, "")


def _wrap(text: str, width: float) -> list[str]:
    """Break a text into lines of at most ``width`` pixels, between words."""
    lines: list[str] = []
    for word in (printable(text, _MAX_TEXT) or "").split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _width(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _width(text: str) -> int:
    return math.ceil(_font(text).getlength(text))


def _font(text: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_file(text), _FONT_PIXELS)
