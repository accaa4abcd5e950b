"""Rows of Hugging Face and TensorFlow datasets and of objects in memory, read through their own libraries."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distil_jax.data.rows.table import Faults, Row, RowStream, place_of
from distil_jax.errors import UserError, first_line

_BATCH = 1000  # rows fetched at a time
_SPLIT = re.compile(r"@([^@/\\]+)$")  # "@" elsewhere belongs to a path
_SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk leaves in a folder


@dataclasses.dataclass(frozen=True)
class HubId:
    """A dataset on the hub, or a local folder; `revision` "" is its main branch."""

    name: str
    config: str = ""
    revision: str = ""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An opened dataset: its name, the names of its splits, and a function (split, columns to keep) -> rows."""

    name: str
    splits: Sequence[str]
    read: Callable[[str, Collection[str]], RowStream]


def is_saved(folder: Path) -> bool:
    """Whether `datasets` wrote the folder with save_to_disk."""
    return any((folder / name).is_file() for name in _SAVED)


# Hugging Face


def open_hub(ids: Iterable[HubId]) -> Dataset:
    """The first dataset of the hub (or local dataset folder) that can be opened.

    Raises:
        UserError: none can; the reason of the first is named.
    """
    tried, first = [], None
    for hub_id in ids:
        title = f"{hub_id.name} ({hub_id.config})" if hub_id.config else hub_id.name
        try:
            splits = _loaded(hub_id)
        except Exception as error:  # the hub client, fsspec and the builders each have exceptions of their own
            tried.append(title)
            first = first or error
            continue

        def read(split: str, keep: Collection[str], title: str = title, splits: Any = splits) -> RowStream:
            return open_objects(splits[split], f"{title}, split {split}", keep)

        return Dataset(title, [*splits], read)
    hint = "check the name and the network (or HF_HUB_OFFLINE), or give a folder with task.source"
    raise _unopened(" and ".join(dict.fromkeys(tried)), first, hint) from first


def _loaded(hub_id: HubId) -> Mapping[str, Any]:
    import datasets

    if is_saved(Path(hub_id.name)):
        found: Any = datasets.load_from_disk(hub_id.name)
        return found if isinstance(found, Mapping) else {"train": found}
    splits: Any = datasets.load_dataset(hub_id.name, hub_id.config or None, revision=hub_id.revision or None)
    return splits


def open_source(source: str, column: str, faults: Faults) -> RowStream:
    """The rows of `hf:NAME[:CONFIG][@SPLIT]` or `tfds:NAME[/CONFIG][:VERSION][@SPLIT]`, streamed, with one column.

    Raises:
        UserError: the name, configuration or split is not there, or a library is missing.
    """
    if source.startswith("tfds:"):
        return _open_tensorflow_split(source, [column], faults)
    import datasets

    name, config, split = _parse(source, ":")
    try:
        with _quiet("datasets"):
            if is_saved(Path(name)):
                data: Any = _loaded(HubId(name))[split].to_iterable_dataset()
            else:
                data = datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # the hub client, fsspec and the builders each have exceptions of their own
        hint = "check name, configuration and split, and that the network (or HF_HUB_OFFLINE) lets it be reached"
        raise _unopened(source, error, hint) from error
    return open_objects(data, source, [column])


def _parse(source: str, config_separator: str | None) -> tuple[str, str | None, str]:
    """Splits `scheme:NAME[:CONFIG][@SPLIT]`; the split is "train" where none is given."""
    rest = source.partition(":")[2]
    match = _SPLIT.search(rest)
    split = match.group(1) if match else "train"
    rest = rest[: match.start()] if match else rest
    name, _, config = rest.partition(config_separator) if config_separator else (rest, "", "")
    if not name:
        raise UserError(f"{source}: no dataset name; write hf:NAME[:CONFIG][@SPLIT] or tfds:NAME[/CONFIG][@SPLIT]")
    return name, config or None, split


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keeps a library from printing an error that is about to be raised as one clear line anyway."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


# Objects in memory


def open_objects(data: Any, name: str, keep: Collection[str] | None = None, faults: Faults | None = None) -> RowStream:
    """The rows of a `datasets` object, a pandas DataFrame, or an iterable of mappings.

    Args:
        data: the object.
        name: for messages.
        keep: columns that matter; None: all.
        faults: what is done about a row that is no mapping.
    """
    stream = RowStream(name, "row")
    if hasattr(data, "column_names"):
        columns = data.column_names
        if columns is not None:
            stream.columns = [*columns]
            kept = [column for column in columns if keep is None or column in keep]
            stream.classes = _classes({column: (data.features or {}).get(column) for column in kept})
            data = data.select_columns(kept) if kept else data
        rows: Iterable[Any] = _batched(data)
    elif hasattr(data, "itertuples"):
        stream.columns = [str(column) for column in data.columns]
        rows = (dict(zip(stream.columns, map(_cell, row), strict=True)) for row in data.itertuples(False, None))
    else:
        rows = data
    stream.rows = _rows(name, rows, faults or Faults())
    return stream


def _batched(data: Any) -> Iterator[dict[str, Any]]:
    if not hasattr(data, "__len__"):  # it streams: a row is given on before the next one is there
        yield from data
        return
    for batch in data.iter(batch_size=_BATCH):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def _cell(value: Any) -> Any:
    """A value of a DataFrame as Python's own; what is missing is None."""
    value = _plain(value)
    missing = value is None or type(value).__name__ in ("NAType", "NaTType") or value != value
    return None if missing else value


def _rows(name: str, rows: Iterable[Any], faults: Faults) -> Iterator[Row]:
    number, source = 0, iter(rows)
    while True:
        try:
            values = next(source)
        except StopIteration:
            return
        except UserError:
            raise
        except Exception as error:  # what a library says of a broken file is its own affair
            hint = "run the same command again; a broken file has to be fetched again"
            raise UserError(f"{name}, row {number + 1}: reading failed ({first_line(error)}); {hint}") from error
        if isinstance(values, Mapping):
            yield Row(number + 1, number, {**values})
        else:
            faults(place_of(name, "row", number + 1), f"holds {type(values).__name__}, not named columns")
        number += 1


def _classes(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Class names of the columns that have them, single ones and lists."""
    found = {}
    for name, feature in features.items():
        names = getattr(getattr(feature, "feature", feature), "names", None)
        if names:
            found[name] = tuple(names)
    return found


def _unopened(name: str, error: BaseException | None, hint: str = "check name, configuration and split") -> UserError:
    return UserError(f"{name}: cannot be opened ({first_line(error)}); {hint}")


# TensorFlow


def open_tensorflow(source: str) -> Dataset:
    """The dataset `tfds:NAME[/CONFIG][:VERSION]`.

    Raises:
        UserError: the extra is missing, the name is unknown, or the data would have to be downloaded offline.
    """
    name = source.removeprefix("tfds:")
    if "@" in name:
        raise UserError(f"task.source = {source!r}: all splits of a task's dataset are used; leave @SPLIT out")
    # Without TensorFlow the library does not find those of its datasets that are modules.
    with contextlib.suppress(ImportError):
        importlib.import_module(f"tensorflow_datasets.text.{name.partition('/')[0].partition(':')[0]}")
    builder = _prepared(source, name)

    def read(split: str, keep: Collection[str]) -> RowStream:
        stream = _open_tensorflow_split(f"{source}@{split}", keep, Faults(), builder)
        if "idx" in keep and "idx" in (stream.columns or ()):
            # The library shuffles what it prepares; this is the order it was published in.
            stream.rows = iter(sorted(stream.rows, key=lambda row: row.values["idx"]))
        return stream

    return Dataset(source, [*builder.info.splits], read)


def _prepared(source: str, name: str) -> Any:
    """The builder of a dataset that is on disk, or has been put there."""
    try:
        import tensorflow_datasets as tfds  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        hint = 'pip install ".[tfds]" in a checkout of distil_jax'
        raise UserError(f"{source}: needs TensorFlow Datasets: {hint} ({error})") from error
    try:
        # array_record can be read without TensorFlow; try_gcs would wait minutes for an unreachable bucket.
        builder = tfds.builder(name, try_gcs=False, file_format="array_record")
        if not builder.is_prepared():
            if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
                raise UserError(f"{source}: not prepared in {builder.data_dir}, and HF_HUB_OFFLINE forbids a download")
            builder.download_and_prepare(file_format="array_record")
    except UserError:
        raise
    except Exception as error:
        raise _unopened(source, error) from error
    return builder


def _open_tensorflow_split(source: str, keep: Collection[str], faults: Faults, builder: Any = None) -> RowStream:
    name, _, split = _parse(source, None)
    builder = builder or _prepared(source, name)
    try:
        data = builder.as_data_source(split=split)
    except Exception as error:
        raise _unopened(source, error) from error
    features = builder.info.features
    kept = [column for column in features if column in keep]
    stream = RowStream(source, "row", columns=[*features], count=len(data))
    stream.classes = _classes({column: features[column] for column in kept})
    stream.rows = _tensorflow_rows(data, kept, stream, faults)
    return stream


def _tensorflow_rows(data: Any, kept: Sequence[str], stream: RowStream, faults: Faults) -> Iterator[Row]:
    for row in _rows(stream.name, (data[i] for i in range(len(data))), faults):
        values: dict[str, Any] = {}
        try:
            for column in kept:
                values[column] = _plain(row.values[column])
            yield row._replace(values=values)
        except UnicodeDecodeError:
            faults(stream.where(row), f"column {kept[len(values)]!r} is not valid Unicode")


def _plain(value: Any) -> Any:
    """NumPy values and bytes as Python's own. Raises UnicodeDecodeError."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else value
