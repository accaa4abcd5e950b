"""Rows of Hugging Face and TensorFlow datasets, read through their own libraries."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from distil_jax.data.corpus.rows import open_tfds
from distil_jax.data.rows import Row, Table
from distil_jax.errors import UserError
from distil_jax.tasks.data.official import HubId

BATCH = 1000  # rows fetched at a time


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An opened dataset: its name, the names of its splits, and a function (split, columns to keep) -> rows."""

    name: str
    splits: Sequence[str]
    read: Callable[[str, frozenset[str]], Table]


def open_hub(ids: Iterable[HubId]) -> Dataset:
    """Opens the first dataset of the hub (or local dataset folder) that can be.

    Raises:
        UserError: none can; what was wrong with the first is told.
    """
    import datasets

    tried, first = [], None
    for hub_id in ids:
        title = f"{hub_id.name} ({hub_id.config})" if hub_id.config else hub_id.name
        try:
            found: Any = datasets.load_dataset(hub_id.name, hub_id.config or None, revision=hub_id.revision or None)
        except Exception as error:  # the hub client, fsspec and the builders each have exceptions of their own
            tried.append(title)
            first = first or error
            continue
        splits: Mapping[str, Any] = found
        return Dataset(title, [*splits], functools.partial(_hub_table, title, splits))
    names = " and ".join(dict.fromkeys(tried))
    raise UserError(
        f"{names}: cannot be opened ({_first_line(first)}); check the name and the network (or HF_HUB_OFFLINE), "
        "or give a folder with task.source"
    ) from first


def _hub_table(title: str, splits: Mapping[str, Any], split: str, kept: frozenset[str]) -> Table:
    data = splits[split]
    table = Table(f"{title}, split {split}", [*data.column_names], [], unit="row")
    names = [name for name in table.columns if name in kept]
    table.classes = _classes({name: data.features[name] for name in names})
    data = data.select_columns(names) if names else data
    batches = (_unzipped(batch) for batch in data.iter(batch_size=BATCH))
    table.rows += _rows(table.name, (row for rows in batches for row in rows))
    return table


def _unzipped(batch: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def open_tensorflow(source: str) -> Dataset:
    """Opens `tfds:NAME[/CONFIG][:VERSION]`.

    Raises:
        UserError: the extra is missing, the name is unknown, or the data would have to be downloaded offline.
    """
    name = source.removeprefix("tfds:")
    if "@" in name:
        raise UserError(f"task.source = {source!r}: all splits of a task's dataset are used; leave @SPLIT away")
    # Without TensorFlow the library does not find those of its data sets that are modules.
    with contextlib.suppress(ImportError):
        importlib.import_module(f"tensorflow_datasets.text.{name.partition('/')[0].partition(':')[0]}")
    try:
        open_tfds(f"{source}@train", "")  # prepares it, or says why not
    except UserError:
        if not (info := _tensorflow_info(name)):
            raise  # else there is no such split, and that is all
    else:
        info = _tensorflow_info(name)
        assert info

    def read(split: str, kept: frozenset[str]) -> Table:
        data, columns, count = open_tfds(f"{source}@{split}", "")
        table = Table(f"{source}@{split}", columns or [], [], unit="row")
        names = [name for name in table.columns if name in kept]
        table.classes = _classes({name: info.features[name] for name in names})
        values = ({name: _plain(row[name]) for name in names} for row in (data[i] for i in range(count)))
        table.rows += _rows(table.name, values)
        if "idx" in names:  # the library shuffles what it prepares; this is the order it was published in
            table.rows.sort(key=lambda row: row.values["idx"])
        return table

    return Dataset(source, [*info.splits], read)


def _tensorflow_info(name: str) -> Any:
    """What the library knows of a dataset that is prepared; None where it is not."""
    try:
        import tensorflow_datasets as tfds  # pyright: ignore[reportMissingImports]

        info = tfds.builder(name, try_gcs=False, file_format="array_record").info
    except Exception:  # the caller has the better message
        return None
    return info if info.splits else None


def _plain(value: Any) -> Any:
    """NumPy values and bytes as Python's own. Raises UnicodeDecodeError."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else value


def _rows(name: str, rows: Iterable[dict[str, Any]]) -> Iterator[Row]:
    number, source = 0, iter(rows)
    while True:
        try:
            values = next(source)
        except StopIteration:
            return
        except Exception as error:  # what a library says of a broken file is its own affair
            hint = "run the command again, or fetch the data set anew"
            raise UserError(f"{name}, row {number + 1}: reading failed ({_first_line(error)}); {hint}") from error
        yield Row(number + 1, number, values)
        number += 1


def _classes(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Class names of the columns that have them, single ones and lists."""
    found = {}
    for name, feature in features.items():
        names = getattr(getattr(feature, "feature", feature), "names", None)
        if names:
            found[name] = tuple(names)
    return found


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
