"""Rows of Parquet files, Hugging Face datasets and TensorFlow datasets, streamed through their own libraries.

An opener returns (data, column names or None where only the first row tells, number of rows or 0 where unknown).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

from distil_jax.errors import UserError

_SPLIT = re.compile(r"@([^@/\\]+)$")  # "@" elsewhere belongs to a path


def open_hf(source: str, column: str) -> tuple[Any, list[str] | None, int]:
    """Opens `hf:NAME[:CONFIG][@SPLIT]` as a stream.

    Raises UserError where the name, configuration or split is not there.
    """
    import datasets

    name, config, split = _parse(source, ":")
    try:
        with _quiet("datasets"):
            data: Any = datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # the hub client, fsspec and the builders each have exceptions of their own
        hint = "check name, configuration and split, and that the network (or HF_HUB_OFFLINE) lets it be reached"
        raise UserError(f"{source}: cannot be opened ({_first_line(error)}); {hint}") from error
    columns = data.column_names
    return data.select_columns([column]) if columns and column in columns else data, columns, 0


def open_tfds(source: str, column: str) -> tuple[Any, list[str] | None, int]:
    """Opens `tfds:NAME[/CONFIG][:VERSION][@SPLIT]` as a random-access data source, preparing it where it is not on
    disk.

    Raises UserError where the extra is missing, the name or split is unknown, or the data would have to be downloaded
    offline.
    """
    try:
        import tensorflow_datasets as tfds  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        hint = 'pip install ".[tfds]" in a checkout of distil_jax'
        raise UserError(f"{source}: needs TensorFlow Datasets: {hint} ({error})") from error
    name, _, split = _parse(source, None)
    try:
        # array_record can be read without TensorFlow; try_gcs would wait minutes for an unreachable bucket.
        builder = tfds.builder(name, try_gcs=False, file_format="array_record")
        if not builder.is_prepared():
            if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
                raise UserError(
                    f"{source}: not prepared in {builder.data_dir}, and HF_HUB_OFFLINE forbids downloading it"
                )
            builder.download_and_prepare(file_format="array_record")
        data = builder.as_data_source(split=split)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{source}: cannot be opened ({_first_line(error)}); check name, configuration and split"
        ) from error
    return data, [*builder.info.features], len(data)


def values(data: Any, source: str, column: str) -> Iterator[object]:
    """Yields the text column of every row. Raises UserError where the column is missing or reading fails half-way."""
    number = 0
    rows = iter(data) if hasattr(data, "column_names") else (data[i] for i in range(len(data)))
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            hint = "run the same command again: it goes on where it stopped; a broken file has to be fetched again"
            raise UserError(f"{source}, row {number + 1}: reading failed ({_first_line(error)}); {hint}") from error
        number += 1
        if column not in row:
            raise UserError(
                f"{source}, row {number}: no column {column!r} (found: {', '.join(row)}; name it with text_column)"
            )
        yield row[column]


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


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


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
