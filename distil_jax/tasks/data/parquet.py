"""Rows of Parquet files with named columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distil_jax.data.corpus.parquet import open_parquet
from distil_jax.data.rows import Faults, Row, Table, place_of
from distil_jax.errors import UserError, one_line
from distil_jax.tasks.data.official import Columns

PARQUET = ".parquet"
_BATCH_ROWS = 256


def read_parquet(path: Path, columns: Columns, faults: Faults) -> Table:
    """Reads the named columns; names of classes that `datasets` has left in the file are known then, too.

    Raises:
        UserError: the file cannot be read, or a row of it (its number, from 1, is named).
    """
    names, classes = _described(path)
    table = Table(str(path), names, [], unit="row", classes=classes)
    kept = [name for name in names if name in columns.names()]
    table.rows += _rows(path, kept, faults)
    return table


def stream_parquet(path: Path, faults: Faults) -> Iterator[Row]:
    """Rows with all of their columns, one at a time. Raises UserError as `read_parquet`."""
    yield from _rows(path, _described(path)[0], faults)


def _described(path: Path) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    """Names of all columns, and of the classes of those that hold class numbers."""
    if path.is_dir() or not path.exists():
        raise UserError(f"{path}: cannot be read ({'a folder' if path.is_dir() else 'no such file'}); check the path")
    _, names, _ = open_parquet(str(path), "")
    import pyarrow.parquet

    metadata = pyarrow.parquet.read_schema(path).metadata or {}
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        found = {name: (feature.get("feature") or feature).get("names") for name, feature in features.items()}
        return names, {name: tuple(map(str, classes)) for name, classes in found.items() if classes}
    except (KeyError, ValueError, TypeError, AttributeError):
        return names, {}  # not written by `datasets`


def _rows(path: Path, names: Sequence[str], faults: Faults) -> Iterator[Row]:
    if not names:
        return
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            leaves = [file.schema.column(i).path for i in range(len(file.schema.names))]
        leaves = [leaf for leaf in leaves if leaf.partition(".")[0] in names]
        for leaf in leaves:
            open_parquet(str(path), leaf)  # refuses what would fill the memory
        with pyarrow.parquet.ParquetFile(path, read_dictionary=leaves) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=[*names], use_threads=False):
                for place in range(batch.num_rows):
                    try:
                        yield Row(number + 1, number, {name: batch.column(name)[place].as_py() for name in names})
                    except UnicodeDecodeError:
                        faults(place_of(str(path), "row", number + 1), "not valid UTF-8")
                    number += 1
    except (OSError, ValueError, OverflowError, pyarrow.ArrowException) as error:
        what: Any = one_line(error)
        raise UserError(f"{path}, row {number + 1}: reading failed ({what}); fetch or write the file again") from error
