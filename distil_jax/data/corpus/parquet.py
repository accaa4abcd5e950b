"""The rows of a Parquet file, one column of it, in memory that depends on its pages and not on its row groups.

Arrow is asked directly: `datasets` unfolds dictionary-encoded columns, so that a kilobyte of a repeated long text
becomes gigabytes, and prints what it also raises.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from distil_jax.data.rows import unfolds_too_far
from distil_jax.errors import UserError, one_line

_BATCH_ROWS = 256


class ParquetRows:
    """Iterates over {column: value}; `column_names` are those that are read."""

    def __init__(self, path: str, column: str) -> None:
        self.path, self.column, self.column_names = path, column, [column]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(self.path, read_dictionary=[self.column]) as file:
                for batch in file.iter_batches(_BATCH_ROWS, columns=[self.column], use_threads=False):
                    for value in batch.column(0):
                        # A dictionary's value is looked up by as_py, one row at a time.
                        yield {self.column: value.as_py()}
        except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
            raise OSError(one_line(error)) from error  # whose bytes the message may spell out


def open_parquet(path: str, column: str) -> tuple[ParquetRows, list[str], int]:
    """Opens one Parquet file -> (rows, names of all columns, number of rows). Only `column` will be decoded.

    Raises:
        UserError: the file is broken, or unfolds to far more than a column of text does.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names, metadata = file.schema_arrow.names, file.metadata
            for number in range(metadata.num_row_groups):
                _check_group(metadata.row_group(number), column, f"{path}, row group {number + 1}")
            return ParquetRows(path, column), names, metadata.num_rows
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        what = one_line(str(error).strip().partition("\n")[0] or type(error).__name__)
        raise UserError(f"{path}: not a readable Parquet file ({what}); fetch or write it again") from error


def _check_group(group: Any, column: str, where: str) -> None:
    for number in range(group.num_columns):
        part = group.column(number)
        if part.path_in_schema != column:
            continue
        packed, unfolded = part.total_compressed_size, part.total_uncompressed_size
        if unfolds_too_far(packed, unfolded):
            raise UserError(f"{where}: column {column!r} unfolds from {packed} to {unfolded} bytes; write it again")
