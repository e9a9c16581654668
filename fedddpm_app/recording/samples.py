"""The images that models generate during a run: a sheet per round, a strip over the rounds, the auxiliary set.

The strip ``samples/rounds.png`` has a row per round. Its columns start from the same noise, so that each shows one
image over the rounds. It is made from the sheets in the folder, whichever process wrote them, and shows at most
``MAX_ROUNDS`` of them, evenly spread from the first to the last: it does not grow with the number of rounds. A strip
shows all rounds at once, also on paper; an animation does not.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedddpm_app.recording.sheets import Texts, read_tiles, save_sheet, save_strip
from fedddpm_app.recording.style import class_labels

COLUMNS = 10  # of a sheet without classes, and of the strip
MAX_ROUNDS = 12
_AUXILIARY_IMAGES = 100  # of a client's sheet
_MAX_ROWS = 20  # with more classes, a row has several
_STRIP_TILE = 96  # pixels: larger images are reduced


def round_sheet(folder: Path, server_round: int, name: str = "") -> Path:
    """Return the sheet of a round; ``name`` identifies one of several models."""
    return folder / f"round-{server_round:04d}{name and '-'}{name}.png"


def auxiliary_sheet(folder: Path, client: int) -> Path:
    """Return the sheet of a client's images in the auxiliary set."""
    return folder / f"client-{client:04d}.png"


def save_rounds(folder: Path, about: str, name: str = "") -> None:
    """Write the strip over the rounds from the sheets in a folder.

    Parameters
    ----------
    folder : Path
        The folder ``samples`` of a run.
    about : str
        The origin of the images, for the caption.
    name : str
        The name of the model, if there are several.
    """
    pattern = re.compile(rf"round-(\d+){re.escape(name and '-' + name)}\.png")
    found = sorted((int(match[1]), path) for path in folder.iterdir() if (match := pattern.fullmatch(path.name)))
    if len(found) < 2:
        return
    shown = [found[k] for k in spread_out(len(found), MAX_ROUNDS)]
    sheets = [(f"round {server_round}", read_tiles(path)) for server_round, path in shown]
    least = min(len(tiles) for _, tiles in sheets)
    columns = [least * k // min(least, COLUMNS) for k in range(min(least, COLUMNS))]  # over all classes
    rows = [(label, [tiles[k] for k in columns]) for label, tiles in sheets]
    every = "" if len(shown) == len(found) else f" {len(shown)} of {len(found)} rounds are shown."
    caption = f"{about}: images over the rounds. Each column starts from the same noise.{every}"
    save_strip(rows, folder / f"rounds{name and '-'}{name}.png", caption, _STRIP_TILE)


def save_samples(images: Tensor, path: Path, about: str, labels: Tensor | None, class_names: Sequence[str]) -> None:
    """Write a sheet of generated images; with labels, its rows are named after their classes.

    Parameters
    ----------
    images : Tensor
        uint8, shape (N, C, H, W); with labels, the same number for every class, class by class.
    path : Path
        The PNG.
    about : str
        The origin of the images, for the caption.
    labels : Tensor or None
        int64, shape (N,).
    class_names : sequence of str
        By label; a class without a name gets its number.
    """
    columns, rows = COLUMNS, []
    if labels is not None:
        classes = int(labels.max()) + 1
        each = len(images) // classes
        per_row = 1 if classes <= _MAX_ROWS else max(1, COLUMNS // each)
        names = class_labels([*class_names, *(f"class {k}" for k in range(len(class_names), classes))], classes)
        parts = [names[k : k + per_row] for k in range(0, classes, per_row)]
        rows = [part[0] if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts]
        columns = each * per_row
    height, width = images.shape[2:]
    caption = f"{about}, {len(images)} images of {width}x{height} pixels."
    save_sheet(images, path, columns, Texts(caption, rows))


def save_clients(images: Mapping[str, Tensor], path: Path, about: str) -> None:
    """Write a sheet with a row for each client's model.

    Parameters
    ----------
    images : mapping of str to Tensor
        By the model's name, uint8, shape (N, C, H, W), generated from the same noise; a row has at most ``COLUMNS`` of
        them, spread over all, and so over the classes.
    path : Path
        The PNG.
    about : str
        The origin of the images, for the caption.
    """
    rows = [generated[spread_out(len(generated), COLUMNS)] for generated in images.values()]
    caption = f"{about}. Each row is one client's own model, and each column starts from the same noise."
    save_sheet(torch.cat(rows), path, len(rows[0]), Texts(caption, [*images]))


def save_auxiliary_sheets(images: Tensor, clients: Sequence[int], folder: Path, run: str) -> None:
    """Write a sheet per client of the auxiliary set, uint8 (N, C, H, W); ``clients`` are the images' clients."""
    for client in sorted(set(clients)):
        rows = [row for row, owner in enumerate(clients) if owner == client]
        step = max(1, len(rows) // _AUXILIARY_IMAGES)  # spread over the client's share, and so over its classes
        shown = rows[::step][:_AUXILIARY_IMAGES]
        caption = (
            f"{run}, auxiliary set: {len(shown)} of the {len(rows)} images that the server generated from the "
            f"pretrained model of client {client}."
        )
        save_sheet(images[shown], auxiliary_sheet(folder, client), COLUMNS, Texts(caption))


def spread_out(count: int, most: int) -> list[int]:
    """Return at most ``most`` of the indices below ``count``, evenly spread, with the first and the last."""
    if count <= most:
        return list(range(count))
    return [round(k * (count - 1) / (most - 1)) for k in range(most)]
