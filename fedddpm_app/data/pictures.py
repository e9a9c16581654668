"""A folder of pictures: the picture files, their splits and classes, and the columns of label tables."""

import os
from collections.abc import Iterator
from pathlib import Path

from datasets import ClassLabel
from PIL import Image

from fedddpm_app.config import ConfigError
from fedddpm_app.data.metadata import Metadata, read_metadata
from fedddpm_app.data.names import in_order
from fedddpm_app.data.splits import LABEL, Split, split_named

_UNSUPPORTED = {".heic", ".heif", ".jxl", ".raw", ".cr2", ".nef", ".dng", ".svg"}  # pictures that Pillow may not open


def find_files(folder: Path) -> Iterator[Path]:
    """Yield the files under a folder in a fixed order; follow links, and skip hidden files and folders."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link to a folder already seen
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        yield from (Path(parent, name) for name in sorted(files) if not name.startswith("."))


def picture_splits(folder: Path) -> dict[str, Split]:
    """Return the splits of a folder of pictures.

    The folders directly in it are splits if all of them have names of splits (``train``, ``Testing``); otherwise
    they are classes. In a split, the folders directly in it are classes, and all files below a class folder belong
    to that class.

    Raises
    ------
    ConfigError
        When there are no pictures, when pictures lie beside class folders, or when a label table does not fit.
    """
    endings = set(Image.registered_extensions()) | _UNSUPPORTED
    pictures = [path for path in find_files(folder) if path.suffix.lower() in endings]
    if not pictures:
        raise ConfigError(
            f"{folder} holds no images that can be read: give a folder of images (with one sub-folder per class, or "
            "without sub-folders), a folder of parquet, arrow or IDX files, or a save_to_disk folder."
        )
    columns = read_metadata(folder, find_files(folder), pictures)
    tops = {path.relative_to(folder).parts[0] for path in pictures if path.parent != folder}
    loose = any(path.parent == folder for path in pictures)
    if not tops or loose or not all(split_named(top) for top in tops):
        return {"train": _split(folder, pictures, columns, _classes(folder, pictures, columns, 0), 0)}
    classes = _classes(folder, pictures, columns, 1)
    by_split: dict[str, list[Path]] = {}
    for path in pictures:
        by_split.setdefault(str(split_named(path.relative_to(folder).parts[0])), []).append(path)
    return {split: _split(folder, paths, columns, classes, 1) for split, paths in by_split.items()}


def _classes(folder: Path, pictures: list[Path], columns: Metadata, depth: int) -> list[str]:
    """Return the names of the class folders, which are the path parts at ``depth``; empty if they give no labels."""
    parts = [path.relative_to(folder).parts for path in pictures]
    beside = [path for path, part in zip(pictures, parts, strict=True) if len(part) == depth + 1]
    if 0 < len(beside) < len(pictures):
        raise ConfigError(
            f"{folder}: {len(beside)} pictures, such as {beside[0].name}, lie beside the class folders: put each "
            "picture into a class folder, or all pictures into one folder without classes."
        )
    return [] if beside else columns.classes_beside([p[depth] for p in parts], in_order({p[depth] for p in parts}))


def _split(folder: Path, pictures: list[Path], columns: Metadata, classes: list[str], depth: int) -> Split:
    """Return a split of pictures, with the columns of label tables and the classes, if there are any."""
    table = columns.rows_of(pictures)
    if classes:
        labels = [classes.index(path.relative_to(folder).parts[depth]) for path in pictures]
        table = table.remove_columns([c for c in table.column_names if c == LABEL])
        table = table.add_column(LABEL, labels, feature=ClassLabel(names=classes))
    return Split(table, lambda row: Image.open(pictures[row]), lambda row: str(pictures[row]))
