"""A folder of pictures: the picture files, their splits and classes, and the columns of a ``metadata.csv``."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset
from PIL import Image

from fedddpm_app.config import ConfigError
from fedddpm_app.data.splits import LABEL, LABEL_COLUMNS, Split, split_named

_METADATA = "metadata.csv"
_FILE_NAME = "file_name"
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
        When there are no pictures, when pictures lie beside class folders, or when ``metadata.csv`` lacks a picture.
    """
    endings = set(Image.registered_extensions()) | _UNSUPPORTED
    pictures = [path for path in find_files(folder) if path.suffix.lower() in endings]
    if not pictures:
        raise ConfigError(
            f"{folder} holds no images that can be read: give a folder of images (with one sub-folder per class, or "
            "without sub-folders), a folder of parquet, arrow or IDX files, or a save_to_disk folder."
        )
    columns = _metadata(folder)
    tops = {path.relative_to(folder).parts[0] for path in pictures if path.parent != folder}
    loose = any(path.parent == folder for path in pictures)
    if not tops or loose or not all(split_named(top) for top in tops):
        return {"train": _split(folder, pictures, columns, _classes(folder, pictures, 0), 0)}
    classes = _classes(folder, pictures, 1)
    by_split: dict[str, list[Path]] = {}
    for path in pictures:
        by_split.setdefault(str(split_named(path.relative_to(folder).parts[0])), []).append(path)
    return {split: _split(folder, paths, columns, classes, 1) for split, paths in by_split.items()}


def _classes(folder: Path, pictures: list[Path], depth: int) -> list[str]:
    """Return the names of the class folders, which are the path parts at ``depth``; empty without class folders."""
    parts = [path.relative_to(folder).parts for path in pictures]
    beside = [path for path, part in zip(pictures, parts, strict=True) if len(part) == depth + 1]
    if 0 < len(beside) < len(pictures):
        raise ConfigError(
            f"{folder}: {len(beside)} pictures, such as {beside[0].name}, lie beside the class folders: put each "
            "picture into a class folder, or all pictures into one folder without classes."
        )
    return [] if beside else _in_order({part[depth] for part in parts})


def _split(folder: Path, pictures: list[Path], columns: Dataset | None, classes: list[str], depth: int) -> Split:
    """Return a split of pictures, with the columns of ``metadata.csv`` and the classes, if there are any."""
    table = Dataset.from_dict({"row": np.arange(len(pictures))}) if columns is None else _rows_of(columns, pictures)
    if classes:
        table = table.remove_columns([c for c in table.column_names if c == LABEL])
        table = _with_classes(table, [path.relative_to(folder).parts[depth] for path in pictures], classes)
    return Split(table, lambda row: Image.open(pictures[row]), lambda row: str(pictures[row]))


def _in_order(names: set[str]) -> list[str]:
    """Return class names in the order of their labels: alphabetical, or numerical if they are 0, 1, 2, ..."""
    numbers = {str(k) for k in range(len(names))}
    return sorted(names, key=int) if names == numbers else sorted(names)


def _with_classes(table: Dataset, texts: list[str], names: list[str]) -> Dataset:
    """Add the label column: the index of each text in ``names``."""
    label_of = {name: label for label, name in enumerate(names)}
    return table.add_column(LABEL, [label_of[text] for text in texts]).cast_column(LABEL, ClassLabel(names=names))


def _metadata(folder: Path) -> Dataset | None:
    """Return the rows of all ``metadata.csv`` under a folder, as texts, with a column of the pictures' paths."""
    rows: list[dict[str, str]] = []
    for path in find_files(folder):
        if path.name.lower() == _METADATA:
            with path.open(encoding="utf-8-sig", newline="") as file:
                found = [row for row in csv.DictReader(file) if row.get(_FILE_NAME)]
            rows += [{**row, _FILE_NAME: str(path.parent / row[_FILE_NAME])} for row in found]
    if not rows:
        return None
    names = [name for name in rows[0] if name]
    table = Dataset.from_dict({name: [row.get(name) or "" for row in rows] for name in names})
    column = next((c for known in LABEL_COLUMNS for c in names if c.lower() == known), None)
    texts = [] if column is None else list(table[column])
    if "" in texts or not 0 < len(set(texts)) <= max(1, len(texts) // 2):  # some labels are missing, or captions
        return table
    return _with_classes(table.remove_columns(column), texts, _in_order(set(texts)))


def _rows_of(columns: Dataset, pictures: list[Path]) -> Dataset:
    """Return the rows of ``metadata.csv`` for ``pictures``, in the order of ``pictures``."""
    row_of = {path: row for row, path in enumerate(columns[_FILE_NAME])}
    missing = [path for path in pictures if str(path) not in row_of]
    if missing:
        raise ConfigError(
            f"{_METADATA} has no row for {len(missing)} pictures, such as {missing[0].name}: add rows with their "
            f'"{_FILE_NAME}", or remove the table.'
        )
    return columns.select([row_of[str(path)] for path in pictures])
