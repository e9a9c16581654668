"""Read a label table: a file of texts in columns (CSV), of JSON lines, or of parquet, as ``datasets`` writes them."""

import codecs
import csv
import io
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow
from pyarrow import parquet

from fedddpm_app import limits
from fedddpm_app.config import ConfigError, first_line
from fedddpm_app.data.labels import label_column
from fedddpm_app.data.unpacked import check_parquet
from fedddpm_app.disk.bounded import read_bytes

FILE_NAME = "file_name"
_DELIMITERS = (",", ";", "\t", "|")
_NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})(\.[0-9]*)?([eE][+-]?[0-9]{1,2})?", re.IGNORECASE)
_MISSING = ("", "nan", "na", "n/a", "#n/a", "null", "none")  # an empty cell of a column of numbers
_SEP_LINE = re.compile(r"sep=(.)\r?\n")  # with which Excel names the delimiter
_WHOLE = re.compile(r"[+-]?[0-9]+")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class LabelTable:
    """The rows of one label table.

    Attributes
    ----------
    path : Path
        Its file.
    columns : dict of str to list
        Equally long columns of texts, numbers, truth values or None, by name; one of them is ``file_name``.
    """

    path: Path
    columns: dict[str, list[object]]


def read_table(path: Path) -> LabelTable:
    """Read a label table by the ending of its file.

    Raises
    ------
    ConfigError
        When the file is damaged or not UTF-8, or has no column ``file_name``.
    """
    try:
        match path.suffix.lower():
            case ".parquet":
                columns = _read_parquet(path)
            case ".jsonl":
                columns = _read_json_lines(path)
            case _:
                columns = _read_delimited(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error}): repair or remove it.") from error
    return LabelTable(path, _with_file_name(columns, path))


def _with_file_name(columns: dict[str, list[object]], path: Path) -> dict[str, list[object]]:
    """Return the columns with the exact name ``file_name``; drop rows in which all cells are empty."""
    found = [name for name in columns if name.lower() == FILE_NAME]
    if len(found) != 1:
        raise ConfigError(
            f'{path} has no column "{FILE_NAME}", only {", ".join(map(repr, columns)) or "an empty first line"}: give '
            "the column with the names of the pictures this name, or rename the file if it does not describe pictures."
        )
    columns = {FILE_NAME if name == found[0] else name: cells for name, cells in columns.items()}
    full = [any(cell not in (None, "") for cell in row) for row in zip(*columns.values(), strict=True)]
    columns = {name: [c for c, keep in zip(cells, full, strict=True) if keep] for name, cells in columns.items()}
    bad = next((k for k, cell in enumerate(columns[FILE_NAME], start=1) if not isinstance(cell, str) or not cell), None)
    if bad is not None:
        raise ConfigError(f'{path}: row {bad} has no text in the column "{FILE_NAME}": fill it, or remove the row.')
    return columns


def _read_text(path: Path) -> str:
    try:
        content = read_bytes(path, limits.TABLE_BYTES)
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        kind = "UTF-16" if content.startswith(_UTF16) else f"another encoding (line {line} shows it)"
        raise _not_utf8(path, kind) from error
    if "\0" in text:
        raise _not_utf8(path, "UTF-16, or damaged (it holds null bytes)")
    return text


def _not_utf8(path: Path, kind: str) -> ConfigError:
    return ConfigError(f'{path} is not UTF-8 text but {kind}: save it as UTF-8 ("CSV UTF-8" in Excel).')


def _read_delimited(path: Path) -> dict[str, list[object]]:
    """Read lines of texts. The delimiter is the character that gives the first line a column ``file_name``."""
    text = _read_text(path)
    text = text[match.end() :] if (match := _SEP_LINE.match(text)) else text
    headers: list[list[str]] = []
    try:
        headers = [_header(text, delimiter) for delimiter in _DELIMITERS]
        named = [FILE_NAME in (cell.lower() for cell in header) for header in headers]
        best = named.index(True) if any(named) else max(range(len(headers)), key=lambda k: len(headers[k]))
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_DELIMITERS[best], strict=True)
        header = _cells(next(reader, []))
        rows = []
        for row in reader:
            if row and len(row) != len(header):
                raise ConfigError(
                    f"{path}: line {reader.line_num} has {len(row)} cells, but the first line has {len(header)}: give "
                    "all lines equally many, with quotes around a text that holds the delimiter."
                )
            if row:
                rows.append(_cells(row))
                check_cells(path, len(rows), len(header))
    except csv.Error as error:
        line = f"line {reader.line_num}: " if headers else ""
        raise ConfigError(f"{path} is a damaged table ({line}{error}): repair or remove it.") from error
    counts = Counter(header)
    twice = next((name for name in header if name and counts[name] > 1), None)
    if twice is not None:
        raise ConfigError(f'{path} has two columns "{twice}": give each column its own name.')
    columns: dict[str, list[object]] = {name: [row[k] for row in rows] for k, name in enumerate(header) if name}
    labels = label_column(columns)
    return columns | ({labels: _numbers(columns[labels])} if labels else {})


def _header(text: str, delimiter: str) -> list[str]:
    return _cells(next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), []))


def check_cells(where: Path | str, rows: int, columns: int) -> None:
    """Raise ``ConfigError`` for too many columns or cells: they take time and memory, also if nothing is in them."""
    if columns > limits.TABLE_COLUMNS or rows * columns > limits.TABLE_CELLS:
        raise ConfigError(
            f"{where} has {columns:,} columns and {rows:,} rows or more, above {limits.TABLE_COLUMNS:,} columns or "
            f"{limits.TABLE_CELLS:,} cells: leave columns out."
        )


def _cells(row: list[str]) -> list[str]:
    return [cell.strip() for cell in row]


def _numbers(cells: list[object]) -> list[object]:
    """Return texts as numbers if all full ones are numbers. A number with leading zeros, as in 007, is a text."""
    texts = ["" if str(cell).lower() in _MISSING else str(cell) for cell in cells]
    if not any(texts) or not all(_NUMBER.fullmatch(text) for text in texts if text):
        return cells
    return [None if not text else int(text) if _WHOLE.fullmatch(text) else float(text) for text in texts]


def _read_json_lines(path: Path) -> dict[str, list[object]]:
    rows: list[dict[str, object]] = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: line {number} is not JSON ({error}): repair or remove it.") from error
        if not isinstance(row, dict):
            raise ConfigError(
                f'{path}: line {number} is not a JSON object such as {{"{FILE_NAME}": "1.png"}}: repair it.'
            )
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    check_cells(path, len(rows), len(names))
    return {name: [row.get(name) for row in rows] for name in names if name}


def _read_parquet(path: Path) -> dict[str, list[object]]:
    try:
        check_parquet(path, limits.TABLE_BYTES)
        table = parquet.read_table(path, use_threads=False)
        return {name: table.column(k).to_pylist() for k, name in enumerate(table.column_names)}
    except (pyarrow.ArrowException, ValueError) as error:
        raise ConfigError(f"{path} is a damaged table ({first_line(error)}): repair or remove it.") from error
