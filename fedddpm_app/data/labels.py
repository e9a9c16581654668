"""The one set of checks for a column of labels, whatever table it is from.

A column is read, or left out with a warning that names it, or refused with a ``ConfigError``.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow
from datasets import ClassLabel, Dataset, Value

from fedddpm_app.config import ConfigError
from fedddpm_app.data.names import in_order, normal_form
from fedddpm_app.data.splits import LABEL, LABEL_COLUMNS
from fedddpm_app.progress import logger

_MAX_CLASSES = 1000  # a text column with more distinct values holds captions, not classes
_TOO_LARGE = 2**63  # labels are int64
_ALLOWED = "labels are classes, truth values, whole numbers from 0, or texts that name classes"


def label_column(names: Iterable[str]) -> str | None:
    """Return the column that holds labels by its name; None if there is none."""
    return next((name for known in LABEL_COLUMNS for name in names if name.lower() == known), None)


def with_classes(
    parts: Mapping[str, Dataset],
    where: str,
    column: str,
    name_of: Callable[[str, int], str] = lambda split, row: f"row {row} of the {split} split",
    class_names: Sequence[str] = (),
) -> dict[str, Dataset]:
    """Turn the column ``label`` of every split into classes or whole numbers, or leave it out with a warning.

    Parameters
    ----------
    parts : mapping of str to Dataset
        The splits, each with a column ``label`` of any type. Equal labels are equal classes in all of them.
    where, column : str
        The data set or file, and the column's name in it, for messages.
    name_of : callable
        Split and row -> a name of this row for messages.
    class_names : sequence of str
        Names of classes that are known: a small site has about as many of them as images.

    Returns
    -------
    dict of str to Dataset
        The splits. Their ``label`` is a ``ClassLabel`` or int64; no split has one if the column is left out.

    Raises
    ------
    ConfigError
        When some cells are empty, or the splits have different classes.
    """
    kinds = {_kind(part) for part in parts.values()} - {"empty"}
    if len(kinds) != 1 or "other" in kinds:
        types = sorted({str(getattr(part.features[LABEL], "dtype", "nested values")) for part in parts.values()})
        return _without(parts, where, column, f"it holds {' and '.join(types)}" if kinds else "it is empty")
    columns = {split: _column(part) for split, part in parts.items()}
    distinct = {value for values in columns.values() for value in values.unique().to_pylist()}
    full = {value for value in distinct if not _is_empty(value)}
    if not full:
        return _without(parts, where, column, "it is empty")
    if full != distinct:
        raise _empty_cells(columns, where, column, name_of)
    match kinds.pop():
        case "class":
            return _with_one_mapping(parts, columns, where)
        case "text":
            return _with_texts(parts, columns, full, where, column, class_names)
        case "truth":
            return _with_labels(parts, columns, {False: 0, True: 1}, ["False", "True"])
        case _:
            return _with_numbers(parts, columns, full, where, column)


def _kind(part: Dataset) -> str:
    feature = part.features[LABEL]
    if isinstance(feature, ClassLabel):
        return "class"
    dtype = feature.dtype if isinstance(feature, Value) else ""
    if dtype in ("string", "large_string"):
        return "text"
    if dtype.removeprefix("u").startswith(("int", "float")):
        return "number"
    return {"bool": "truth", "null": "empty"}.get(dtype, "other")


def _column(part: Dataset) -> pyarrow.ChunkedArray:
    return part.select_columns([LABEL]).with_format("arrow")[:].column(0)


def _is_empty(value: object) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def _without(parts: Mapping[str, Dataset], where: str, column: str, reason: str) -> dict[str, Dataset]:
    logger.warning('%s: its column "%s" is left out, because %s: %s.', where, column, reason, _ALLOWED)
    return {split: part.remove_columns(LABEL) for split, part in parts.items()}


def _empty_cells(
    columns: dict[str, pyarrow.ChunkedArray], where: str, column: str, name_of: Callable[[str, int], str]
) -> ConfigError:
    cells = [(split, row, cell) for split, values in columns.items() for row, cell in enumerate(values.to_pylist())]
    empty = [(split, row) for split, row, cell in cells if _is_empty(cell)]
    return ConfigError(
        f'{where}: {len(empty)} of {len(cells)} cells of its column "{column}" are empty, such as '
        f"{name_of(*empty[0])}: fill them, or remove or rename the column to train without labels."
    )


def _with_labels(
    parts: Mapping[str, Dataset],
    columns: dict[str, pyarrow.ChunkedArray],
    label_of: Mapping[Any, int],
    names: list[str] | None,
) -> dict[str, Dataset]:
    """Replace the values of every split by their labels; classes have names, other labels are numbers."""
    feature = Value("int64") if names is None else ClassLabel(names=names)
    labels = {split: np.array([label_of[v] for v in values.to_pylist()], np.int64) for split, values in columns.items()}
    return {
        split: part.remove_columns(LABEL).add_column(LABEL, labels[split], feature=feature)
        for split, part in parts.items()
    }


def _with_texts(
    parts: Mapping[str, Dataset],
    columns: dict[str, pyarrow.ChunkedArray],
    texts: set[str],
    where: str,
    column: str,
    class_names: Sequence[str],
) -> dict[str, Dataset]:
    """Turn texts into classes. White space around a text and its Unicode form do not count."""
    name_of = {text: normal_form(text.strip()) for text in texts}
    names = in_order(set(name_of.values()))
    most = min(_MAX_CLASSES, sum(len(values) for values in columns.values()) // 2)
    if len(names) > most and {normal_form(name) for name in class_names}.isdisjoint(names):
        reason = f"it holds {len(names)} different texts, such as {names[0]!r}, where at most {most} can be classes"
        return _without(parts, where, column, f"{reason} (half the number of images, and {_MAX_CLASSES})")
    index = {name: label for label, name in enumerate(names)}
    return _with_labels(parts, columns, {text: index[name] for text, name in name_of.items()}, names)


def _with_numbers(
    parts: Mapping[str, Dataset],
    columns: dict[str, pyarrow.ChunkedArray],
    numbers: set[float],
    where: str,
    column: str,
) -> dict[str, Dataset]:
    """Take whole numbers as labels, also if they are stored as 1.0; numbers 0, 1, 2, ... without a gap are classes."""
    odd = next((n for n in sorted(numbers) if not math.isfinite(n) or n != int(n) or abs(n) >= _TOO_LARGE), None)
    if odd is not None:
        return _without(parts, where, column, f"it holds numbers such as {odd}")
    label_of = {number: int(number) for number in numbers}
    without_gap = len(numbers) <= _MAX_CLASSES and set(label_of.values()) == set(range(len(numbers)))
    return _with_labels(parts, columns, label_of, [str(k) for k in range(len(numbers))] if without_gap else None)


def _with_one_mapping(
    parts: Mapping[str, Dataset], columns: dict[str, pyarrow.ChunkedArray], where: str
) -> dict[str, Dataset]:
    """Give the classes of every split the labels of the first split, which is the train split."""
    own = {split: [normal_form(name) for name in part.features[LABEL].names] for split, part in parts.items()}
    names = list(dict.fromkeys(next(iter(own.values()))))
    found = {}
    for split, part in parts.items():
        if sorted(set(own[split])) != sorted(names):
            raise ConfigError(
                f"{where}: its {split} split has other classes than its {next(iter(parts))} split; use the same class "
                "names in both."
            )
        most = max(columns[split].unique().to_pylist())
        if most >= len(own[split]):
            raise ConfigError(
                f"{where}: its {split} split has the label {most} but only {len(own[split])} class names."
            )
        if part.features[LABEL].names == names:
            found[split] = part
        else:
            labels = {-1: -1} | {label: names.index(name) for label, name in enumerate(own[split])}
            found |= _with_labels({split: part}, {split: columns[split]}, labels, names)
    return found
