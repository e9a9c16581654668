"""Label tables: the ``metadata.csv`` beside pictures, with the columns of every picture."""

import csv
from collections.abc import Iterable
from pathlib import Path

from datasets import ClassLabel, Dataset

from fedddpm_app.config import ConfigError
from fedddpm_app.data.names import in_order
from fedddpm_app.data.splits import LABEL, LABEL_COLUMNS

_METADATA = "metadata.csv"
_FILE_NAME = "file_name"


def with_classes(table: Dataset, texts: list[str], names: list[str]) -> Dataset:
    """Add the label column: the index of each text in ``names``."""
    label_of = {name: label for label, name in enumerate(names)}
    return table.add_column(LABEL, [label_of[text] for text in texts]).cast_column(LABEL, ClassLabel(names=names))


def read_metadata(files: Iterable[Path]) -> Dataset | None:
    """Return the rows of all ``metadata.csv`` among files, as texts, with a column of the pictures' paths."""
    rows: list[dict[str, str]] = []
    for path in files:
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
    return with_classes(table.remove_columns(column), texts, in_order(set(texts)))


def rows_of(columns: Dataset, pictures: list[Path]) -> Dataset:
    """Return the rows of ``metadata.csv`` for ``pictures``, in the order of ``pictures``."""
    row_of = {path: row for row, path in enumerate(columns[_FILE_NAME])}
    missing = [path for path in pictures if str(path) not in row_of]
    if missing:
        raise ConfigError(
            f"{_METADATA} has no row for {len(missing)} pictures, such as {missing[0].name}: add rows with their "
            f'"{_FILE_NAME}", or remove the table.'
        )
    return columns.select([row_of[str(path)] for path in pictures])
