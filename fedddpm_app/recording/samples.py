"""The images that models generate during a run: a sheet per round, a strip over the rounds, the auxiliary set.

The strip ``samples/rounds.png`` has a row per round. Its columns start from the same noise, so that each shows one
image over the rounds. It is made from the sheets in the folder, whichever process wrote them, and shows at most
``MAX_ROUNDS`` of them, evenly spread from the first to the last: it does not grow with the number of rounds. A strip
shows all rounds at once, also on paper; an animation does not.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedddpm_app.apportion import spread_out
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.recording.layout import auxiliary_sheet, round_sheets
from fedddpm_app.recording.sheets import Texts, read_tiles, save_sheet, save_strip
from fedddpm_app.recording.style import class_labels

REAL_SHEET = "real.png"  # of the test split, to compare with
COLUMNS = 10  # of a sheet without classes, and of the strip
MAX_ROUNDS = 12
_AUXILIARY_IMAGES = 100  # of a client's sheet
_MAX_ROWS = 20  # with more classes, a row has several
_STRIP_TILE = 96  # pixels: larger images are reduced


def save_rounds(folder: Path, about: str, name: str = "", classes: Sequence[str] = ()) -> None:
    """Write the strip over the rounds from the sheets in a folder.

    Parameters
    ----------
    folder : Path
        The folder ``samples`` of a run.
    about : str
        The origin of the images, for the title.
    name : str
        The name of the model, if there are several.
    classes : sequence of str
        The class of each image of a sheet; empty for a model without classes.
    """
    found = sorted((server_round, path) for server_round, model, path in round_sheets(folder) if model == name)
    if len(found) < 2:
        return
    shown = [found[k] for k in spread_out(len(found), MAX_ROUNDS)]
    sheets = [(f"round {server_round}", read_tiles(path)) for server_round, path in shown]
    least = min(len(tiles) for _, tiles in sheets)
    columns = [least * k // min(least, COLUMNS) for k in range(min(least, COLUMNS))]  # over all classes
    rows = [(label, [tiles[k] for k in columns]) for label, tiles in sheets]
    every = "" if len(shown) == len(found) else f" {len(shown)} of {len(found)} rounds are shown."
    title = f"{about}: images over the rounds. Each column starts from the same noise.{every}"
    shown_classes = [classes[k] for k in columns] if len(classes) >= least else []
    save_strip(rows, folder / f"rounds{name and '-'}{name}.png", title, _STRIP_TILE, shown_classes)


def names_of(labels: Tensor | None, class_names: Sequence[str]) -> list[str]:
    """Return the name of the class of each image for a picture; empty without labels (int64, shape (N,))."""
    if labels is None or not len(labels):
        return []
    names = class_labels(class_names, int(labels.max()) + 1)
    return [f"class {name}" if (name := names[label]).strip("#").isdigit() else name for label in labels.tolist()]


def save_samples(images: Tensor, path: Path, about: str, labels: Tensor | None, class_names: Sequence[str]) -> None:
    """Write a sheet of generated images; with labels, its rows are named after their classes.

    Parameters
    ----------
    images : Tensor
        uint8, shape (N, C, H, W); with labels, the same number for every class, class by class.
    path : Path
        The PNG.
    about : str
        The origin of the images, for the title.
    labels : Tensor or None
        int64, shape (N,).
    class_names : sequence of str
        By label; a class without a name gets its number.
    """
    columns, rows, classes = COLUMNS, [], "the model has no classes"
    if labels is not None:
        count = int(labels.max()) + 1
        each = len(images) // count
        per_row = 1 if count <= _MAX_ROWS else max(1, COLUMNS // each)
        columns, classes = each * per_row, f"{each} of each class"
        rows = _row_names(names_of(labels, class_names), columns)
    height, width = images.shape[2:]
    title = f"{about}, {len(images)} images of {width}x{height} pixels; {classes}."
    save_sheet(images, path, columns, Texts(title, rows))


def _row_names(names: Sequence[str], columns: int) -> list[str]:
    """Return the label of each row from the names of its images: one class, or the first and the last."""
    rows = [names[start : start + columns] for start in range(0, len(names), columns)]
    return [row[0] if row[0] == row[-1] else f"{row[0]} to {row[-1]}" for row in rows]


def save_real(data: ImageTensors, path: Path, count: int, about: str, class_names: Sequence[str]) -> None:
    """Write a sheet of real images, to compare generated ones with: of each class as many, if they have labels.

    Parameters
    ----------
    data : ImageTensors
        uint8, shape (N, C, H, W).
    path : Path
        The PNG.
    count : int
        Images, about.
    about : str
        The origin of the images, for the caption.
    class_names : sequence of str
        By label.
    """
    labels = data.labels.cpu() if data.labels is not None else None
    classes = 0 if labels is None else int(labels.max()) + 1
    each = max(1, count // classes) if classes else 0
    if labels is None or labels.bincount().min() < each:
        shown = data.images[spread_out(len(data.images), count)].cpu()
        save_samples(shown, path, about, None, class_names)
        return
    rows = torch.cat([(labels == k).nonzero().flatten()[:each] for k in range(classes)])
    save_samples(data.images.cpu()[rows], path, about, labels[rows], class_names)


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
        The origin of the images, for the title.
    """
    rows = [generated[spread_out(len(generated), COLUMNS)] for generated in images.values()]
    title = f"{about}. Each row is one client's own model, and each column starts from the same noise."
    save_sheet(torch.cat(rows), path, len(rows[0]), Texts(title, [*images]))


def save_auxiliary_sheets(
    data: ImageTensors, clients: Sequence[int], folder: Path, run: str, class_names: Sequence[str]
) -> None:
    """Write a sheet per client of the auxiliary set; with labels, it has a row per class that the client has.

    Parameters
    ----------
    data : ImageTensors
        The auxiliary set.
    clients : sequence of int
        The client of each image.
    folder : Path
        For the PNGs.
    run : str
        The name of the run, for the titles.
    class_names : sequence of str
        By label; a class without a name gets its number.
    """
    names = names_of(data.labels, class_names)
    for client in sorted(set(clients)):
        rows = [row for row, owner in enumerate(clients) if owner == client]
        if data.labels is None:
            shown, labels = [rows[k] for k in spread_out(len(rows), _AUXILIARY_IMAGES)], list[str]()
        else:
            shown, labels = _by_class(data.labels, rows, names)
        height, width = data.images.shape[2:]
        title = (
            f"{run}, auxiliary set: {len(rows)} images of {width}x{height} pixels from the pretrained model of client "
            f"{client}{'' if data.labels is None else ', by class'}; at most "
            f"{_AUXILIARY_IMAGES if data.labels is None else f'{COLUMNS} in a row'} are shown."
        )
        empty = frozenset(k for k, row in enumerate(shown) if row < 0)
        path = auxiliary_sheet(folder, client)
        save_sheet(data.images[shown], path, COLUMNS, Texts(title, labels, empty=empty))


def _by_class(labels: Tensor, rows: Sequence[int], names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return a client's images, by number, with a row per class, filled up with -1, and the names of the rows."""
    of_class: dict[str, list[int]] = {}
    for row in sorted(rows, key=lambda row: int(labels[row])):
        of_class.setdefault(names[row], []).append(row)
    if len(of_class) > _MAX_ROWS:
        shown = [row for members in of_class.values() for row in members]
        shown = [shown[k] for k in spread_out(len(shown), _AUXILIARY_IMAGES)]
        return shown, _row_names([names[row] for row in shown], COLUMNS)
    shown = []
    for members in of_class.values():
        chosen = [members[k] for k in spread_out(len(members), COLUMNS)]
        shown += chosen + [-1] * (COLUMNS - len(chosen))
    return shown, [f"{name} ({len(members)})" for name, members in of_class.items()]
