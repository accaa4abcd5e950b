"""Rows of Parquet files, in memory that depends on their pages and not on their row groups.

Arrow is asked directly: `datasets` unfolds dictionary-encoded columns, so that a kilobyte of a repeated long text
becomes gigabytes, and prints what it also raises.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from distil_jax.data.rows.files import unfolds_too_far
from distil_jax.data.rows.options import ReadOptions
from distil_jax.data.rows.table import Faults, Row, RowStream, place_of
from distil_jax.errors import UserError, first_line, one_line

_BATCH_ROWS = 256


def open_parquet(path: Path, options: ReadOptions, faults: Faults) -> RowStream:
    """The rows of a Parquet file, with the names of classes that `datasets` has left in it.

    Args:
        path: the file.
        options: `keep` says which columns are decoded.
        faults: what is done about a row that is no text.

    Raises:
        UserError: the file is broken, or a column unfolds to far more than text does.
    """
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: cannot be read ({what}); check the path")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names, metadata, described = file.schema_arrow.names, file.metadata, file.schema_arrow.metadata or {}
            kept = [name for name in names if options.keep is None or name in options.keep]
            leaves = [file.schema.column(i).path for i in range(len(file.schema.names))]
            leaves = [leaf for leaf in leaves if leaf.partition(".")[0] in kept]
            for number in range(metadata.num_row_groups):
                _check_group(metadata.row_group(number), leaves, f"{path}, row group {number + 1}")
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: not a readable Parquet file ({first_line(error)}); write it again") from error
    rows = _rows(path, kept, leaves, faults) if kept else iter(())
    return RowStream(str(path), "row", rows, names, classes=_classes(described), count=metadata.num_rows)


def _check_group(group: Any, leaves: Collection[str], where: str) -> None:
    for number in range(group.num_columns):
        part = group.column(number)
        if part.path_in_schema not in leaves:
            continue
        packed, unfolded = part.total_compressed_size, part.total_uncompressed_size
        if unfolds_too_far(packed, unfolded):
            name = part.path_in_schema.partition(".")[0]
            raise UserError(f"{where}: column {name!r} unfolds from {packed} to {unfolded} bytes; write it again")


def _classes(metadata: Any) -> dict[str, tuple[str, ...]]:
    """Names of the classes of columns that hold class numbers, where `datasets` wrote the file."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        found = {name: (feature.get("feature") or feature).get("names") for name, feature in features.items()}
        return {name: tuple(map(str, classes)) for name, classes in found.items() if classes}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _rows(path: Path, names: Sequence[str], leaves: Sequence[str], faults: Faults) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        # A dictionary's value is looked up by as_py, one row at a time.
        with pyarrow.parquet.ParquetFile(path, read_dictionary=[*leaves]) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=[*names], use_threads=False):
                for place in range(batch.num_rows):
                    try:
                        yield Row(number + 1, number, {name: batch.column(name)[place].as_py() for name in names})
                    except UnicodeDecodeError:
                        faults(place_of(str(path), "row", number + 1), "not valid UTF-8")
                    number += 1
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        what = one_line(error)  # its bytes may be spelled out
        raise UserError(f"{path}, row {number + 1}: reading failed ({what}); fetch or write the file again") from error
