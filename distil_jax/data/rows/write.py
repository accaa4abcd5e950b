"""Rows written as CSV, TSV, JSON Lines or Parquet, a few at a time."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from distil_jax.data.rows.files import compression_of, suffix_of
from distil_jax.data.rows.options import Format
from distil_jax.data.rows.read import ENDINGS
from distil_jax.errors import UserError, one_line

WRITABLE: tuple[Format, ...] = ("csv", "tsv", "jsonl", "parquet")
_PREDICTED = "predicted_"


class RowWriter(Protocol):
    """Writes rows; what was written is flushed after each call."""

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes some more rows."""
        ...

    def close(self) -> None:
        """Ends the file."""
        ...


def writable_format(target: str | Path) -> Format:
    """The format that a file's ending names, JSON Lines for ".json" and where there is none.

    Raises:
        UserError: no rows are written in this format.
    """
    suffix = suffix_of(Path(target))
    format = ENDINGS.get(suffix)
    if format in ("json", None) and suffix in (".json", ""):
        return "jsonl"
    if format not in WRITABLE:
        known = ", ".join(ending for ending, format in ENDINGS.items() if format in WRITABLE)
        raise UserError(f"{target}: rows cannot be written as {suffix}; use one of {known}")
    return format


def open_writer(target: str | Path | IO[str], format: Format | None = None) -> RowWriter:
    """A writer of rows.

    Args:
        target: a file's path (it is replaced), or an open text stream.
        format: "csv", "tsv", "jsonl" or "parquet"; None: by the path's ending, JSON Lines for a stream.

    Raises:
        UserError: the ending names no format of these, or the file cannot be written.
    """
    if not isinstance(target, str | Path):
        if format == "parquet":
            raise UserError("Parquet cannot be written to a stream of text; name a file")
        return _text_writer(target, format or "jsonl", close=False)
    path = Path(target).expanduser()
    format = format or writable_format(path)
    if compression_of(path):
        raise UserError(f"{path}: is written unpacked; leave {path.suffix} out")
    try:
        if format == "parquet":
            path.open("wb").close()
            return _ParquetWriter(path)
        return _text_writer(path.open("w", encoding="utf-8", newline=""), format, close=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another file") from error


def write_rows(target: str | Path | IO[str], rows: Iterable[Mapping[str, Any]], format: Format | None = None) -> None:
    """Writes all rows. Arguments and errors as of `open_writer`."""
    writer = open_writer(target, format)
    try:
        writer.write([*rows])
    finally:
        writer.close()


def with_predictions(values: Mapping[str, Any], predicted: Mapping[str, Any]) -> dict[str, Any]:
    """A row's own columns, then what was predicted for it; a name that the row has already gets "predicted_"."""
    added = {f"{_PREDICTED}{name}" if name in values else name: value for name, value in predicted.items()}
    return {**values, **added}


def json_line(value: object, ascii_only: bool = False) -> str:
    """A value as one line of JSON, without its end. Raises ValueError for a number that is not finite."""
    return json.dumps(value, ensure_ascii=ascii_only, allow_nan=False)


def _text_writer(file: IO[str], format: Format, *, close: bool) -> RowWriter:
    if format == "jsonl":
        return _JsonWriter(file, close)
    return _TableWriter(file, "," if format == "csv" else "\t", close)


class _JsonWriter:
    def __init__(self, file: IO[str], close: bool) -> None:
        self.file, self.owned = file, close
        # A terminal that takes no Unicode gets the escapes of JSON.
        self.plain = "utf" not in (getattr(file, "encoding", None) or "utf-8").lower()

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.file.write("".join(f"{json_line(row, self.plain)}\n" for row in rows))
        self.file.flush()

    def close(self) -> None:
        if self.owned:
            self.file.close()


class _TableWriter:
    """CSV and TSV: cells are quoted where needed; lists and objects are written as JSON, what is missing as ""."""

    def __init__(self, file: IO[str], separator: str, close: bool) -> None:
        self.file, self.separator, self.owned = file, separator, close
        self.columns: list[str] = []

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.writer(text, delimiter=self.separator, lineterminator="\n")
        if not self.columns and rows:
            self.columns = _all_columns(rows)
            writer.writerow(self.columns)
        for row in rows:
            _check_columns(row, self.columns, self.file)
            writer.writerow([_cell(row.get(name)) for name in self.columns])
        self.file.write(text.getvalue())
        self.file.flush()

    def close(self) -> None:
        if self.owned:
            self.file.close()


class _ParquetWriter:
    """The columns and types of the first rows are those of the file."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, None
        self.columns: list[str] = []

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        import pyarrow
        import pyarrow.parquet

        if not rows:
            return
        self.columns = self.columns or _all_columns(rows)
        for row in rows:
            _check_columns(row, self.columns, self.path)
        schema = None if self.file is None else self.file.schema
        columns = {name: [row.get(name) for row in rows] for name in self.columns}
        try:
            table = pyarrow.Table.from_pydict(columns, schema=schema)
        except (pyarrow.ArrowException, TypeError, ValueError) as error:
            raise UserError(
                f"{self.path}: rows hold values of different types ({one_line(error)}); write JSON Lines"
            ) from error
        if self.file is None:
            self.file = pyarrow.parquet.ParquetWriter(self.path, table.schema)
        self.file.write_table(table)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


def _all_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [*dict.fromkeys(name for row in rows for name in row)]


def _check_columns(row: Mapping[str, Any], columns: Sequence[str], target: object) -> None:
    if strange := next((name for name in row if name not in columns), None):
        name = getattr(target, "name", target)
        raise UserError(f"{name}: a row has a column {strange!r} that the first rows lack; write JSON Lines")


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool | dict | list | tuple):
        return json_line(value)
    return value
