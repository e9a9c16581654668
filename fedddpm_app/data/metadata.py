"""Label tables beside pictures, such as ``metadata.csv``: one row per picture, with its columns and its label."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
from datasets import ClassLabel, Dataset

from fedddpm_app.config import ConfigError
from fedddpm_app.data.labels import label_column, with_classes
from fedddpm_app.data.names import normal_form, printable
from fedddpm_app.data.splits import LABEL, split_named
from fedddpm_app.data.tables import FILE_NAME, LabelTable, check_cells, read_table
from fedddpm_app.progress import logger

TABLE_NAMES = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "metadata.parquet")
_NAMES = " or ".join(TABLE_NAMES)
_SIMILAR = (
    ".csv",
    ".tsv",
    ".jsonl",
    ".json",
    ".xlsx",
    ".xls",
    ".ods",
)  # a table of another name is not read, with a warning
_SPLIT_COLUMNS = ("split", "splits", "subset", "set", "partition")
_SHOWN = 5


@dataclass(frozen=True)
class Metadata:
    """The columns of N pictures.

    Attributes
    ----------
    where : str
        The label tables, for messages; empty without them.
    pictures : list of Path
        The N pictures.
    table : Dataset
        N rows: ``label`` (classes or whole numbers) if a table has labels, and the other columns as texts.
    """

    where: str
    pictures: list[Path]
    table: Dataset

    def rows_of(self, pictures: list[Path]) -> Dataset:
        """Return the rows of some of the pictures, in their order."""
        row_of = {path: row for row, path in enumerate(self.pictures)}
        return self.table.select([row_of[path] for path in pictures])

    def classes_beside(self, folders: list[str], names: list[str]) -> list[str]:
        """Return ``names``, the class folders, if they give the labels; an empty list if the table gives them.

        ``folders`` has the class folder of every picture. A single folder does not separate classes, so the labels of
        a table count. If there are several, the table must give the same classes.
        """
        if LABEL not in self.table.column_names or len(names) < 2:
            return [] if LABEL in self.table.column_names else names
        labels = [*self.table[LABEL]]
        pairs = set(zip(folders, labels, strict=True))
        if len(pairs) == len(set(folders)) == len(set(labels)) and not self._is_swapped(pairs):
            return names
        raise ConfigError(
            f"{self.where} has labels that differ from the class folders {', '.join(names[:_SHOWN])}: rename the label "
            "column to use the folders, or put the pictures into one folder to use the table."
        )

    def split_columns(self) -> list[str]:
        """Return the columns whose texts name the splits of the pictures."""
        texts = {name: self.table.unique(name) for name in self.table.column_names if name.lower() in _SPLIT_COLUMNS}
        named = {name: {split_named(str(text)) for text in values} for name, values in texts.items()}
        return [name for name, splits in named.items() if len(splits - {None}) > 1]

    def _is_swapped(self, pairs: set[tuple[str, int]]) -> bool:
        """Return whether the table gives a class folder's name to another folder; numbers may start elsewhere."""
        feature = self.table.features[LABEL]
        named = [(folder, feature.names[label]) for folder, label in pairs] if isinstance(feature, ClassLabel) else []
        own = {name for _, name in named if not name.isdecimal()}
        return any(folder in own and folder != name for folder, name in named)


def read_metadata(
    folder: Path, files: Iterable[Path], pictures: list[Path], class_names: Sequence[str] = ()
) -> Metadata:
    """Return the columns that the label tables of a folder give its pictures.

    Parameters
    ----------
    folder : Path
        The folder of pictures.
    files, pictures : iterable and list of Path
        All files under it, and N of them that are pictures.
    class_names : sequence of str
        Names of classes that are known, see ``with_classes``.

    Raises
    ------
    ConfigError
        When a table cannot be read, some of its labels are empty, or its rows do not fit the pictures.
    """
    files = list(files)
    paths = [path for path in files if path.name.lower() in TABLE_NAMES]
    if not paths:
        _warn_of_similar([path for path in files if path.suffix.lower() in _SIMILAR])
        return Metadata("", pictures, Dataset.from_dict({"row": np.arange(len(pictures))}))
    tables = [read_table(path) for path in paths]
    where = " and ".join(printable(path) for path in paths[:_SHOWN])
    order = _matched(_rows(tables, folder), pictures, where)
    return Metadata(where, pictures, _table(tables, order, where, class_names))


def _warn_of_similar(files: list[Path]) -> None:
    if files:
        more = f" and {len(files) - 1} more files like it are" if len(files) > 1 else " is"
        logger.warning("%s%s not read: a label table has the name %s.", printable(files[0]), more, _NAMES)


def _rows(tables: list[LabelTable], folder: Path) -> dict[str, tuple[int, int]]:
    """Return the table and the row of every picture that the tables name, by the normal form of its path."""
    found: dict[str, tuple[int, int]] = {}
    for number, table in enumerate(tables):
        for row, name in enumerate(table.columns[FILE_NAME]):
            key = _key(table.path.parent, str(name))
            if not Path(key).is_relative_to(normal_form(str(folder))):
                raise ConfigError(
                    f'{table.path} names "{name}", which is outside {folder}: write {FILE_NAME} relative to the table.'
                )
            other = found.setdefault(key, (number, row))
            if _cells(tables, other) != _cells(tables, (number, row)):
                raise ConfigError(
                    f'{table.path} has different rows for one picture, "{name}": keep one of them, so that it has one '
                    "label."
                )
    return found


def _key(folder: Path, name: str) -> str:
    """Return the path of a picture in the form in which names are compared; Windows' backslashes count as slashes."""
    return normal_form(os.path.normpath(folder / name.replace("\\", "/")))


def _cells(tables: list[LabelTable], place: tuple[int, int]) -> dict[str, object]:
    number, row = place
    return {name: cells[row] for name, cells in tables[number].columns.items() if name != FILE_NAME}


def _matched(row_of: dict[str, tuple[int, int]], pictures: list[Path], where: str) -> list[tuple[int, int]]:
    """Return the table and the row of every picture; raise ``ConfigError`` for a row or a picture without the other."""
    keys = [_key(path.parent, path.name) for path in pictures]
    twice = next((key for key, count in Counter(keys).items() if count > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice} is the name of two files, in two Unicode forms: rename one of them.")
    missing = [path for path, key in zip(pictures, keys, strict=True) if key not in row_of]
    extra = sorted(set(row_of) - set(keys))
    if missing:
        others = f" ({len(extra)} rows name files that are not pictures, such as {extra[0]})" if extra else ""
        raise ConfigError(
            f"{where}: there is no row for {len(missing)} of {len(pictures)} pictures, such as {printable(missing[0])}"
            f"{others}: add rows with their {FILE_NAME}, relative to the table, or remove the table."
        )
    if extra:
        raise ConfigError(
            f"{where}: rows name {len(extra)} files that are not pictures of the folder, such as {extra[0]}: remove "
            "these rows, or add the pictures."
        )
    return [row_of[key] for key in keys]


def _table(tables: list[LabelTable], order: list[tuple[int, int]], where: str, class_names: Sequence[str]) -> Dataset:
    """Return the columns of the tables with their rows in the order of the pictures, and the checked labels."""
    names = list(dict.fromkeys(name for table in tables for name in table.columns))
    check_cells(where, len(order), len(names))
    columns = {name: [_cell(tables[number], name, row) for number, row in order] for name in names}
    labels = label_column(names)
    texts = {name: ["" if c is None else _text(c) for c in cells] for name, cells in columns.items() if name != labels}
    texts.pop(LABEL, None)
    try:
        if labels is None:
            return Dataset.from_dict(texts)
        table = Dataset.from_dict({**texts, LABEL: _column(columns[labels])})
    except UnicodeEncodeError as error:
        raise ConfigError(f"{where} holds text that is not Unicode ({error.reason}): repair it.") from error
    return with_classes({"": table}, where, labels, lambda _, row: texts[FILE_NAME][row], class_names)[""]


def _cell(table: LabelTable, name: str, row: int) -> object:
    return table.columns[name][row] if name in table.columns else None


def _column(cells: list[object]) -> pyarrow.Array:
    """Return cells as a column; cells of several types become texts."""
    types = {type(cell) for cell in cells if cell is not None}
    if types <= {int, float} or len(types) == 1:
        try:
            return pyarrow.array(cells, from_pandas=True)
        except (pyarrow.ArrowException, OverflowError):  # larger than int64
            pass
    return pyarrow.array([None if cell is None else _text(cell) for cell in cells])


def _text(cell: object) -> str:
    """Return a cell as text; a whole number has no decimals."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)
