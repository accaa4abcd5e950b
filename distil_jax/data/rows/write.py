"""Rows written as CSV, TSV, JSON Lines or Parquet, a few at a time."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from distil_jax.data.rows.files import compression_of, suffix_of
from distil_jax.data.rows.options import Format
from distil_jax.data.rows.read import ENDINGS
from distil_jax.errors import UserError, one_line

_SEPARATORS = {"csv": ",", "tsv": "\t"}
_WRITABLE = (*_SEPARATORS, "jsonl", "parquet")


class RowWriter:
    """Writes rows a few at a time; text is flushed after each call.

    The first rows decide on the columns of a table, and Parquet's types. Cells of CSV and TSV are quoted where needed;
    lists and objects are JSON there, and what is missing is empty.
    """

    def __init__(self, target: str | Path | IO[str], format: Format | None = None) -> None:
        """Opens a writer.

        Args:
            target: a file's path (the file is replaced), or an open text stream.
            format: "csv", "tsv", "jsonl" or "parquet"; None: by the path's ending, JSON Lines for a stream.

        Raises:
            UserError: rows are not written in this format, or the file cannot be written.
        """
        self.owned = isinstance(target, str | Path)
        self.name = str(target) if isinstance(target, str | Path) else getattr(target, "name", "output")
        self.format = format or (writable_format(self.name) if self.owned else "jsonl")
        self.columns: list[str] = []
        self._file: Any = None if self.format == "parquet" else target  # Parquet's is opened once its types are known
        if isinstance(target, str | Path):
            path = Path(target).expanduser()
            _refuse_packed(path)
            try:
                file = path.open("w", encoding="utf-8", newline="")
            except OSError as error:
                raise UserError(f"{path}: cannot be written ({error.strerror}); choose another file") from error
            self._path, self._file = path, None if self.format == "parquet" else file
        elif self.format == "parquet":
            raise UserError("Parquet cannot be written to a stream of text; name a file")

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes some more rows. Raises UserError for a column that the first rows lack."""
        if not rows:
            return
        header = not self.columns
        self.columns = self.columns or [*dict.fromkeys(name for row in rows for name in row)]
        if self.format == "jsonl":
            # A terminal that takes no Unicode gets the escapes of JSON.
            plain = "utf" not in (getattr(self._file, "encoding", None) or "utf-8").lower()
            text = "".join(f"{json_line(row, plain)}\n" for row in rows)
        else:
            if strange := next((name for row in rows for name in row if name not in self.columns), None):
                raise UserError(f"{self.name}: a row has a column {strange!r} that the first lack; write JSON Lines")
            if self.format == "parquet":
                self._write_parquet({name: [row.get(name) for row in rows] for name in self.columns})
                return
            text = self._table(rows, header)
        self._file.write(text)
        self._file.flush()

    def close(self) -> None:
        """Ends the file; a stream stays open."""
        if self.owned and self._file is not None:
            self._file.close()

    def _table(self, rows: Sequence[Mapping[str, Any]], header: bool) -> str:
        text = io.StringIO()
        writer = csv.writer(text, delimiter=_SEPARATORS[self.format], lineterminator="\n")
        if header:
            writer.writerow(self.columns)
        writer.writerows([_cell(row.get(name)) for name in self.columns] for row in rows)
        return text.getvalue()

    def _write_parquet(self, columns: dict[str, list[Any]]) -> None:
        import pyarrow
        import pyarrow.parquet

        try:
            table = pyarrow.Table.from_pydict(columns, schema=None if self._file is None else self._file.schema)
        except (pyarrow.ArrowException, TypeError, ValueError) as error:
            what = one_line(error)
            raise UserError(f"{self.name}: rows of different types ({what}); write JSON Lines") from error
        self._file = self._file or pyarrow.parquet.ParquetWriter(self._path, table.schema)
        self._file.write_table(table)


def write_rows(target: str | Path | IO[str], rows: Iterable[Mapping[str, Any]], format: Format | None = None) -> None:
    """Writes all rows. Arguments and errors as of `RowWriter`."""
    writer = RowWriter(target, format)
    try:
        writer.write([*rows])
    finally:
        writer.close()


def writable_format(target: str | Path) -> Format:
    """The format that a file's ending names, JSON Lines for ".json" and where there is none.

    Raises:
        UserError: no rows are written in this format, or packed.
    """
    _refuse_packed(Path(target))
    suffix = suffix_of(Path(target))
    format = "jsonl" if suffix in (".json", "") else ENDINGS.get(suffix)
    if format not in _WRITABLE:
        known = ", ".join(ending for ending, format in ENDINGS.items() if format in _WRITABLE)
        raise UserError(f"{target}: rows cannot be written as {suffix}; use one of {known}")
    return format


def _refuse_packed(path: Path) -> None:
    if compression_of(path):
        raise UserError(f"{path}: is written unpacked; leave {path.suffix} out")


def with_predictions(values: Mapping[str, Any], predicted: Mapping[str, Any]) -> dict[str, Any]:
    """A row's own columns, then what was predicted for it; a name that the row has already gets "predicted_"."""
    return {**values, **{f"predicted_{name}" if name in values else name: value for name, value in predicted.items()}}


def json_line(value: object, ascii_only: bool = False) -> str:
    """A value as one line of JSON, without its end. Raises ValueError for a number that is not finite."""
    return json.dumps(value, ensure_ascii=ascii_only, allow_nan=False)


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return json_line(value) if isinstance(value, bool | dict | list | tuple) else value
