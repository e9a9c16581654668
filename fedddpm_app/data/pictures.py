"""A folder of pictures: which files are pictures, of which split, class and (by a table beside them) what else."""

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
    """Yield the files under a folder in a fixed order, links followed, without hidden ones and their folders."""
    seen = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        yield from (Path(parent, name) for name in sorted(files) if not name.startswith("."))


def picture_splits(folder: Path) -> dict[str, Split]:
    """Return the splits of a folder of pictures.

    The folders directly in it are splits if all of them are named like splits (``train``, ``Testing``), else
    classes. Classes are the folders directly in a split, whatever is below them.

    Raises
    ------
    ConfigError
        When pictures lie beside class folders, or ``metadata.csv`` does not tell of all.
    """
    endings = set(Image.registered_extensions()) | _UNSUPPORTED
    pictures = [path for path in find_files(folder) if path.suffix.lower() in endings]
    if not pictures:
        raise ConfigError(
            f"{folder} holds no images that can be read: give a folder of images (one sub-folder per class, or none), "
            "of parquet, arrow or IDX files, or one that save_to_disk wrote."
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
    """Return the names of the class folders, which are the parts of the paths at ``depth``; empty without any."""
    parts = [path.relative_to(folder).parts for path in pictures]
    beside = [path for path, part in zip(pictures, parts, strict=True) if len(part) == depth + 1]
    if 0 < len(beside) < len(pictures):
        raise ConfigError(
            f"{folder}: {len(beside)} pictures, such as {beside[0].name}, lie beside the class folders: put each in "
            "one, or all in one folder without classes."
        )
    return [] if beside else _in_order({part[depth] for part in parts})


def _split(folder: Path, pictures: list[Path], columns: Dataset | None, classes: list[str], depth: int) -> Split:
    """Return a split of pictures, with the columns of a table and the classes, where there are any."""
    table = Dataset.from_dict({"row": np.arange(len(pictures))}) if columns is None else _rows_of(columns, pictures)
    if classes:
        table = table.remove_columns([c for c in table.column_names if c == LABEL])
        table = _with_classes(table, [path.relative_to(folder).parts[depth] for path in pictures], classes)
    return Split(table, lambda row: Image.open(pictures[row]), lambda row: str(pictures[row]))


def _in_order(names: set[str]) -> list[str]:
    """Return the names of classes in the order of their labels: alphabetical, but 0, 1, 2, ... as numbers."""
    numbers = {str(k) for k in range(len(names))}
    return sorted(names, key=int) if names == numbers else sorted(names)


def _with_classes(table: Dataset, texts: list[str], names: list[str]) -> Dataset:
    """Add the column of labels: the place of each text among the names."""
    place = {name: label for label, name in enumerate(names)}
    return table.add_column(LABEL, [place[text] for text in texts]).cast_column(LABEL, ClassLabel(names=names))


def _metadata(folder: Path) -> Dataset | None:
    """Return the rows of all ``metadata.csv`` under a folder, with a column of the pictures' paths; texts."""
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
    if "" in texts or not 0 < len(set(texts)) <= max(1, len(texts) // 2):  # unknown for some, or captions
        return table
    return _with_classes(table.remove_columns(column), texts, _in_order(set(texts)))


def _rows_of(columns: Dataset, pictures: list[Path]) -> Dataset:
    """Return the rows of ``metadata.csv`` for pictures, in their order."""
    place = {path: row for row, path in enumerate(columns[_FILE_NAME])}
    missing = [path for path in pictures if str(path) not in place]
    if missing:
        raise ConfigError(
            f"{_METADATA} says nothing of {len(missing)} pictures, such as {missing[0].name}: add rows with their "
            f'"{_FILE_NAME}", or remove the table.'
        )
    return columns.select([place[str(path)] for path in pictures])
