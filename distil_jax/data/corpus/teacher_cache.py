"""What a teacher said of every row of the first steps of a run, on disk.

Masks are a function of (seed, step, row of the batch), so a cache belongs to one seed, batch size and masking. A folder
holds

- `rows-00000.bin`, ...: one record a row, of the fields in teacher.json, in the order of the steps' batches;
- `teacher.json`: the fields, the steps and SHA-256 of every shard, and what the cache was made of. It is written after
  each shard, so that an interrupted command continues behind the last one.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distil_jax.data.corpus.tokens import read_signed, write_file, write_signed
from distil_jax.errors import UserError, one_line, shown
from distil_jax.hf import file_sha256

CACHE_INDEX = "teacher.json"
FORMAT, VERSION = "distil_jax teacher cache", 1
_SHARD_BYTES = 256 << 20


@dataclasses.dataclass(frozen=True)
class _Shard:
    file: str
    first_step: int
    steps: int
    sha256: str


@dataclasses.dataclass
class TeacherCache:
    """An open cache.

    Attributes:
        folder: where it lies.
        made_of: settings and fingerprints by name, which a run that uses it must share.
        batch_size: rows a step.
        dtype: of one row's record.
        shards: in the order of their steps.
    """

    folder: Path
    made_of: Mapping[str, Any]
    batch_size: int
    dtype: np.dtype
    shards: list[_Shard]
    _rows: dict[int, np.ndarray] = dataclasses.field(default_factory=dict, repr=False)
    _lock: threading.Lock = dataclasses.field(default_factory=threading.Lock, repr=False)

    @property
    def steps(self) -> int:
        """Steps that it holds, from 0 on."""
        return sum(shard.steps for shard in self.shards)

    @property
    def bytes_per_row(self) -> int:
        """Bytes on disk of one row."""
        return self.dtype.itemsize

    def tail_share(self) -> float:
        """The mean probability of the tokens that are not kept, in the last shard; 0 without probabilities."""
        rows = self._shard(len(self.shards) - 1) if self.shards else np.empty(0, self.dtype)
        return float(rows["tail"].mean()) if "tail" in (self.dtype.names or ()) and rows.size else 0.0

    def refuse_other(self, made_of: Mapping[str, Any]) -> None:
        """Raises UserError where the cache was made of something else than `made_of`."""
        # Settings that are newer than the cache were not there to differ.
        differ = [name for name, value in self.made_of.items() if made_of.get(name) != value]
        if differ:
            values = (f"{name} = {_short(self.made_of.get(name))}, not {_short(made_of.get(name))}" for name in differ)
            raise UserError(
                f"teacher.cache = {self.folder}: was made with {'; '.join(values)}. Give the same, or make another "
                "cache with distil-jax cache-teacher"
            )

    def read(self, step: int, part: slice) -> np.ndarray:
        """Records [rows of the part] of the given part of batch `step`.

        Raises:
            UserError: their shard is damaged; each is compared with its hash when it is first read.
        """
        number = next(i for i, shard in enumerate(self.shards) if step < shard.first_step + shard.steps)
        first = (step - self.shards[number].first_step) * self.batch_size
        return self._shard(number)[first + part.start : first + part.stop]

    def _shard(self, number: int) -> np.ndarray:
        with self._lock:
            if number not in self._rows:
                self.verify(number)
                self._rows = {number: np.memmap(self.folder / self.shards[number].file, self.dtype, "r")}
            return self._rows[number]

    def verify(self, number: int) -> None:
        """Raises UserError where a shard is not as it was written."""
        shard, path = self.shards[number], self.folder / self.shards[number].file
        remedy = "delete it; distil-jax cache-teacher makes it and those behind it again"
        if not path.is_file():
            raise UserError(f"{path}: missing; {remedy}")
        if file_sha256(path) != shard.sha256:
            raise UserError(f"{path}: damaged (its SHA-256 differs from {CACHE_INDEX}); {remedy}")


def open_teacher_cache(folder: Path) -> TeacherCache:
    """The cache in `folder`. Raises UserError where there is none, or its index is damaged."""
    path = folder / CACHE_INDEX
    if not path.is_file():
        raise UserError(f"teacher.cache = {folder}: no cache there; make it with distil-jax cache-teacher")
    index = read_signed(path, FORMAT, VERSION, "make the cache again")
    try:
        dtype = np.dtype([(name, kind, tuple(shape)) for name, kind, shape in index["fields"]])
        shards = [_Shard(**shard) for shard in index["shards"]]
        return TeacherCache(folder, index["made_of"], index["batch_size"], dtype, shards)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({one_line(error)}); delete the folder and make the cache again") from error


class CacheWriter:
    """Writes a cache step by step, behind what the folder already holds of it."""

    def __init__(self, folder: Path, made_of: Mapping[str, Any], batch_size: int, dtype: np.dtype) -> None:
        """Open or begin the cache in `folder`.

        Raises:
            UserError: it holds another cache, or other files.
        """
        self.cache = TeacherCache(folder, made_of, batch_size, dtype, [])
        if (folder / CACHE_INDEX).is_file():
            found = open_teacher_cache(folder)
            found.refuse_other(made_of)
            if found.dtype != dtype:
                raise UserError(f"teacher.cache = {folder}: holds {found.dtype.names}, not {dtype.names}")
            self.cache = found
            self._keep_whole()
        elif folder.is_dir() and any(
            not entry.name.startswith((".", "run.lock", "rows-")) for entry in folder.iterdir()
        ):
            raise UserError(f"teacher.cache = {folder}: not empty and no cache; choose another folder")
        self._steps_a_shard = max(1, _SHARD_BYTES // (batch_size * dtype.itemsize))
        self._waiting: list[np.ndarray] = []

    def _keep_whole(self) -> None:
        """Forget the first shard that is missing or of another size, and all behind it."""
        cache = self.cache
        for number, shard in enumerate(cache.shards):
            path, size = cache.folder / shard.file, shard.steps * cache.batch_size * cache.bytes_per_row
            if not path.is_file() or path.stat().st_size != size:
                del cache.shards[number:]
                return

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Add the batch of the next step: every field [batch_size, ...]."""
        records = np.empty(self.cache.batch_size, self.cache.dtype)
        for name, values in rows.items():
            records[name] = values
        self._waiting.append(records)
        if len(self._waiting) == self._steps_a_shard:
            self.commit()

    def commit(self) -> None:
        """Write what was added since the last shard as one."""
        if not self._waiting:
            return
        cache = self.cache
        name = f"rows-{len(cache.shards):05d}.bin"
        written = write_file(cache.folder / name, np.concatenate(self._waiting).view(np.uint8).data)
        cache.shards.append(_Shard(name, cache.steps, len(self._waiting), written["sha256"]))
        self._waiting = []
        index = {
            "format": FORMAT,
            "version": VERSION,
            "made_of": cache.made_of,
            "batch_size": cache.batch_size,
            "fields": fields_of(cache.dtype),
            "shards": [dataclasses.asdict(shard) for shard in cache.shards],
        }
        write_signed(cache.folder / CACHE_INDEX, index)


def fields_of(dtype: np.dtype) -> list[Sequence[Any]]:
    """[name, type, shape] of every field of a record."""
    assert dtype.fields is not None
    return [[name, kind.base.str, list(kind.shape)] for name, (kind, *_) in dtype.fields.items()]


def _short(value: Any) -> str:
    """A value as in a message; of a hash the first digits."""
    text = shown(value) if value is not None else "nothing"
    return text if len(text) <= 40 else f"{text[:13]}..."
