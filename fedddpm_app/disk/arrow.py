"""Arrow files, which can unpack to any size: by compression, and by rows that share values.

``datasets`` writes neither, and its reader takes the memory for both before anything can be counted.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from fedddpm_app import limits
from fedddpm_app.disk.bounded import read_json

_OLD_COMPRESSION = b"ARROW:experimental_compression"
_BLOCK = struct.Struct("<qi4xq")  # of a footer: offset, bytes of the metadata, bytes of the body
_END = struct.Struct("<i6s")  # bytes of the footer, ARROW1
# the numbers of fields in Arrow's tables Message, DictionaryBatch, RecordBatch and Footer
_HEADER, _DATA, _COMPRESSION, _BLOCKS = 2, 1, 3, (2, 3)


def check_saved(folder: Path) -> None:
    """Check the files of a ``save_to_disk`` folder: they lie in it, and unpack to no more than they hold.

    Raises
    ------
    OSError, pa.ArrowException
        When a file cannot be read.
    LookupError, TypeError, ValueError
        When the folder is no such folder, a name leads out of it, or as ``check_arrow``.
    """
    splits = [folder]
    if (index := folder / "dataset_dict.json").is_file():
        splits = [_inside(folder, name) for name in read_json(index)["splits"]]
    for split in splits:
        for file in read_json(split / "state.json")["_data_files"]:
            check_arrow(_inside(split, file["filename"]))


def check_arrow(path: Path) -> None:
    """Check that an Arrow file, of either format, unpacks to no more than it holds; its values are not read.

    Raises
    ------
    OSError, pa.ArrowException
        When the file cannot be read.
    ValueError
        When it is compressed, has too many rows, or rows that share values.
    """
    with pa.memory_map(str(path)) as file:
        content = file.read_buffer()
    try:
        pa.ipc.open_stream(content)
    except pa.ArrowInvalid:
        pa.ipc.open_file(content)  # checks the footer
        messages, reader = _listed(content), pa.ipc.open_file(content)
    else:
        messages, reader = iter(pa.ipc.MessageReader.open_stream(content)), pa.ipc.open_stream(content)
    if any(_is_compressed(message) for message in messages):
        raise ValueError(f"{path.name} has compressed columns: store it without compression, or as parquet")
    for field in reader.schema:
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if _shares_values(kind):
            raise ValueError(
                f'{path.name}: the rows of its column "{field.name}" ({field.type}) share values: store plain values'
            )
    _check_rows(path, reader)


def stored_cells(table: Dataset, column: str) -> list[Any]:
    """Return a column as it is stored: ``datasets`` would open files and addresses that its cells name."""
    found: list[Any] = table.select_columns([column]).with_format("arrow")[:].column(0).to_pylist()
    return found


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f'{folder.name} names "{name}", which is outside of it: keep its files in the folder')
    return path


def _check_rows(path: Path, reader: pa.RecordBatchStreamReader | pa.RecordBatchFileReader) -> None:
    """Check the number of rows, where they lie, and what the rows of dictionaries unpack to."""
    is_stream = isinstance(reader, pa.RecordBatchStreamReader)
    most = max(limits.UNPACKED_BYTES, limits.UNPACKED_RATIO * path.stat().st_size)
    num_rows, num_bytes = 0, 0
    for batch in reader if is_stream else (reader.get_batch(k) for k in range(reader.num_record_batches)):
        batch.validate(full=True)
        num_rows += batch.num_rows
        dictionaries = [column.dictionary for column in batch.columns if pa.types.is_dictionary(column.type)]
        num_bytes += sum(batch.num_rows * _longest(values) for values in dictionaries)
        if num_rows > limits.ROWS:
            raise ValueError(f"{path.name} has {num_rows:,} rows, more than {limits.ROWS:,}: split it")
        if num_bytes > most:
            raise ValueError(
                f"{path.name}: rows that share values unpack to up to {num_bytes:,} bytes: store plain values"
            )


def _longest(values: pa.Array) -> int:
    """Return the bytes of the longest value; values of a fixed size count as 16 bytes, as decimals have."""
    texts = (pa.types.is_string, pa.types.is_binary, pa.types.is_large_string, pa.types.is_large_binary)
    if any(is_kind(values.type) for is_kind in texts):
        return int(pc.max(pc.binary_length(values)).as_py() or 0)
    return 16 if pa.types.is_primitive(values.type) else max(1, values.nbytes)


def _shares_values(kind: pa.DataType) -> bool:
    """Return whether rows of a type, or of a type in it, can share values or need none."""
    views = (pa.types.is_string_view, pa.types.is_binary_view, pa.types.is_list_view, pa.types.is_large_list_view)
    others = (pa.types.is_dictionary, pa.types.is_run_end_encoded)
    inner = [kind.field(k).type for k in range(kind.num_fields)]
    storage = [kind.storage_type] if isinstance(kind, pa.BaseExtensionType) else []
    return any(is_kind(kind) for is_kind in (*views, *others)) or any(map(_shares_values, inner + storage))


def _listed(content: pa.Buffer) -> Iterator[pa.Message]:
    """Yield the messages of a file that its footer lists, which need not be those that follow each other."""
    size, _ = _END.unpack(content[-_END.size :])
    footer = content[-_END.size - size : -_END.size].to_pybytes()
    for number in _BLOCKS:
        vector = _target(footer, _field(footer, _target(footer, 0), number))
        count = int.from_bytes(footer[vector : vector + 4], "little") if vector else 0
        for offset, metadata, body in _BLOCK.iter_unpack(footer[vector + 4 : vector + 4 + count * _BLOCK.size]):
            yield pa.ipc.read_message(content[offset : offset + metadata + body])


def _is_compressed(message: pa.Message) -> bool:
    metadata = message.metadata.to_pybytes()
    if message.type not in ("record batch", "dictionary"):
        return False
    batch = _target(metadata, _field(metadata, _target(metadata, 0), _HEADER))
    if message.type == "dictionary":
        batch = _target(metadata, _field(metadata, batch, _DATA))
    return bool(_field(metadata, batch, _COMPRESSION)) or _OLD_COMPRESSION in metadata


def _field(content: bytes, table: int, number: int) -> int:
    """Return the place of a field of a FlatBuffers table that the library has verified; 0 if it is not set."""
    fields = table - int.from_bytes(content[table : table + 4], "little", signed=True)
    size = int.from_bytes(content[fields : fields + 2], "little")
    entry = 4 + 2 * number
    offset = int.from_bytes(content[fields + entry : fields + entry + 2], "little") if entry < size else 0
    return table + offset if offset else 0


def _target(content: bytes, place: int) -> int:
    """Return the place that the offset at a place leads to; the first of a buffer leads to its root table."""
    return place + int.from_bytes(content[place : place + 4], "little")
