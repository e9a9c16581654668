"""Parquet files, which can unpack to any size: a text that a thousand rows share is stored once."""

from pathlib import Path

from pyarrow import parquet

from fedddpm_app import limits

_ROWS_AT_ONCE, _BATCH_BYTES = 256, 2**25


def check_parquet(path: Path, largest: int | None = None) -> None:
    """Check what a parquet file unpacks to; it is read once for this, a few rows at a time.

    Parameters
    ----------
    path : Path
        The file.
    largest : int, optional
        Bytes that it may unpack to; by default a multiple of its size.

    Raises
    ------
    ValueError
        When it states or unpacks to more, or has too many rows or cells.
    """
    size = path.stat().st_size
    most = largest or max(limits.UNPACKED_BYTES, limits.UNPACKED_RATIO * size)
    with parquet.ParquetFile(path) as file:
        about = file.metadata
        if about.num_rows > limits.ROWS:
            raise ValueError(f"{path.name} states {about.num_rows:,} rows, more than {limits.ROWS:,}: split it")
        columns = about.num_columns
        if columns > limits.TABLE_COLUMNS or about.num_rows * columns > limits.TABLE_CELLS:
            raise ValueError(
                f"{path.name} states {columns:,} columns and {about.num_rows:,} rows, above {limits.TABLE_COLUMNS:,} "
                f"columns or {limits.TABLE_CELLS:,} cells: leave columns out"
            )
        stored = [about.row_group(k).total_byte_size for k in range(about.num_row_groups)]
        _check_total(path, sum(stored), most)
        # A cell has at most the bytes of its group, and each row of a batch may have that cell.
        rows_at_once = min(_ROWS_AT_ONCE, max(1, _BATCH_BYTES // max([1, *stored])))
        total = 0
        for batch in file.iter_batches(rows_at_once, use_threads=False):
            total += batch.nbytes
            _check_total(path, total, most)


def _check_total(path: Path, total: int, most: int) -> None:
    if total > most:
        raise ValueError(
            f"{path.name} unpacks to {total:,} bytes or more, more than the {most:,} that are read of a file of "
            f"{path.stat().st_size:,}: store it without equal rows"
        )
