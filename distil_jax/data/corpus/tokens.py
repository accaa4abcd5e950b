"""The token shards on disk: an index in JSON and memory-mapped rows.

A corpus folder holds

- `tokens-00000.bin`, ...: rows [rows, L] of little-endian uint16 (vocabularies up to 65,536) or uint32, one shard after
  another;
- `documents-00000.bin`, ...: for each sequence of the shard, in row order, the number within the shard of its document,
  uint32;
- `token_counts.npy`: int64 [vocab_size], how often each id occurs ([CLS] and [SEP] counted, padding not);
- `index.json`: everything else. It is written last: a folder without it is no corpus.

A sequence is [CLS] ids [SEP]; rows hold one or several, then padding. [CLS] occurs nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distil_jax.data.corpus.index import COUNTS, flaw_of_index, shard_names
from distil_jax.errors import UserError, one_line
from distil_jax.hf import file_sha256

FORMAT, VERSION = "distil_jax tokens", 2
_LARGEST_INDEX = 64 << 20  # bytes; a shard has about 800
_SCANNED = 256 << 20  # bytes of tokens that are looked through when a corpus is opened
INDEX = "index.json"
_AGAIN = "delete the folder and prepare the corpus again"


@dataclass(frozen=True)
class Shard:
    """One shard: `first_row` and `first_document` within the corpus, its numbers, and its mapped rows [rows, L]."""

    number: int
    first_row: int
    num_rows: int
    num_sequences: int
    first_document: int
    ids: np.ndarray = field(repr=False)
    documents_path: Path = field(repr=False)

    def documents(self) -> np.ndarray:
        """The corpus-wide number of the document of each sequence, in row order, [sequences] int64."""
        return np.fromfile(self.documents_path, "<u4").astype(np.int64) + self.first_document


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus, opened by `open_corpus`. `dtype` is that of the ids on disk; `index` the whole of index.json.

    `sha256` identifies the data (rows, their order and the vocabulary), wherever the folder or its sources lie.
    """

    folder: Path
    sequence_length: int
    packed: bool
    num_rows: int
    num_tokens: int
    num_sequences: int
    num_documents: int
    vocab_size: int
    tokenizer_sha256: str
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    dtype: np.dtype
    sha256: str
    token_counts: np.ndarray = field(repr=False)
    shards: tuple[Shard, ...] = field(repr=False)
    index: Mapping[str, Any] = field(repr=False)

    @property
    def special_ids(self) -> tuple[int, ...]:
        """The ids that are never predicted."""
        return (self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id)

    @property
    def fill(self) -> float:
        """The fraction of places in rows that hold tokens rather than padding."""
        return self.num_tokens / (self.num_rows * self.sequence_length)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about the sources it was made from."""
        return tuple(self.index.get("notes", ()))

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Gathers rows -> ids [n, L] of the dtype on disk.

        `rows` [n] integers in any order, repeats allowed. Raises IndexError outside 0..num_rows - 1, and UserError
        where a row holds an id beyond the vocabulary, which a model would silently take for another one.
        """
        rows = np.asarray(rows, np.int64)
        if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < self.num_rows:
            raise IndexError(f"rows {rows.min()}..{rows.max()} of a corpus with rows 0..{self.num_rows - 1}")
        out = np.empty((len(rows), self.sequence_length), self.dtype)
        # Sorted, the rows of one shard lie together: one gather a shard, and pages are touched in the order of the
        # file.
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        ends = np.searchsorted(ordered, ends_of(self.shards))
        start = 0
        for shard, end in zip(self.shards, ends.tolist(), strict=True):
            if end > start:
                out[order[start:end]] = shard.ids[ordered[start:end] - shard.first_row]
            start = end
        if out.size and int(out.max()) >= self.vocab_size:
            bad = int(ordered[np.flatnonzero((out[order] >= self.vocab_size).any(axis=1))[0]])
            path = self.folder / shard_names(int(np.searchsorted(ends_of(self.shards), bad, "right")))[0]
            raise UserError(f"{path}, row {bad} of the corpus: {beyond(int(out.max()), self.vocab_size)}")
        return out

    def row_range(self, start: int, stop: int) -> np.ndarray:
        """Rows start..stop - 1 -> ids [stop - start, L]. Raises IndexError outside the corpus."""
        return self.read(np.arange(start, stop))


def ends_of(shards: Sequence[Shard]) -> list[int]:
    """One past the last row of each shard."""
    return [shard.first_row + shard.num_rows for shard in shards]


def beyond(number: int, vocab_size: int) -> str:
    """What is said of an id that is not in the vocabulary."""
    return f"holds id {number}, the vocabulary has {vocab_size}; prepare it again"


def write_file(path: Path, data: bytes | memoryview) -> dict[str, Any]:
    """Writes a file atomically and durably -> {"bytes", "sha256"}.

    A crash leaves no file of that name or all of it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UserError(f"{path}: cannot be written ({error.strerror}); free space or use another one") from error
        raise
    return {"bytes": memoryview(data).nbytes, "sha256": hashlib.sha256(data).hexdigest()}


def canonical(value: object) -> bytes:
    """JSON with sorted keys: the same bytes for the same content."""
    return json.dumps(value, sort_keys=True, indent=1).encode()


def write_signed(path: Path, index: Mapping[str, Any]) -> None:
    """Writes an index, which has a format and a version, with a digest of itself."""
    digest = hashlib.sha256(canonical(index)).hexdigest()
    write_file(path, canonical({**index, "index_sha256": digest}) + b"\n")


def read_signed(path: Path, format: str, version: int, remedy: str) -> dict[str, Any]:
    """The index that `write_signed` has written, without its digest.

    Raises:
        UserError: it is damaged, or of another format or version.
    """
    try:
        if path.stat().st_size > _LARGEST_INDEX:
            raise ValueError(f"larger than {_LARGEST_INDEX} bytes")
        index = json.loads(path.read_bytes())
        if not isinstance(index, dict) or index.get("format") != format:
            raise UserError(f"{path}: not the index of {format}; {remedy}")
        if index["version"] != version:
            found = one_line(index["version"], 40)
            raise UserError(f"{path}: format version {found}, this program reads {version}; {remedy}")
        if index.pop("index_sha256") != hashlib.sha256(canonical(index)).hexdigest():
            raise ValueError("its own sha256 differs")
        return index
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise UserError(f"{path}: damaged index ({one_line(error)}); delete the folder and {remedy}") from error


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    """Commits a corpus: adds the format and the identity of the data to its index, and writes it."""
    identity = {key: index[key] for key in ("sequence_length", "packed", "dtype", "tokenizer_sha256")}
    identity["shards"] = [shard["files"]["tokens"]["sha256"] for shard in index["shards"]]
    digest = hashlib.sha256(canonical(identity)).hexdigest()
    write_signed(folder / INDEX, {**index, "format": FORMAT, "version": VERSION, "sha256": digest})


def read_index(folder: Path) -> dict[str, Any]:
    """Reads and checks index.json. Raises UserError where it is missing, damaged or of another version."""
    path = folder / INDEX
    if not path.is_file():
        if (folder / "train" / INDEX).is_file():
            raise UserError(f"{folder}: holds the parts train and perhaps validation; give one, such as {folder}/train")
        what = "no finished corpus here" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {what}; make it with `distil-jax prepare`, or give that again if it was stopped")
    index = read_signed(path, FORMAT, VERSION, "prepare the corpus again")
    if what := flaw_of_index(index):
        raise UserError(f"{path}: damaged index ({what}); {_AGAIN}")
    return index


def open_corpus(folder: Path, *, verify: bool = False) -> Corpus:
    """Opens a prepared corpus, mapping its shards.

    Always checks the index and the size of every file; `verify` reads everything: the sha256 of each file and that ids
    are below vocab_size. Raises UserError naming the file that is missing or damaged.
    """
    folder = Path(folder)
    index = read_index(folder)
    length, dtype = index["sequence_length"], np.dtype(index["dtype"])
    _check_file(folder, index["token_counts"], verify)
    counts = _read_counts(folder / COUNTS, index)
    shards: list[Shard] = []
    first_row = scanned = 0
    for number, entry in enumerate(index["shards"]):
        for part in ("tokens", "documents"):
            _check_file(folder, entry["files"][part], verify)
        path, shape = folder / entry["files"]["tokens"]["file"], (entry["rows"], length)
        # As a plain array: indexing a memmap object costs several times the gather itself.
        ids = np.asarray(np.memmap(path, dtype, "r", shape=shape)) if entry["rows"] else np.empty(shape, dtype)
        scanned += ids.nbytes
        # A whole corpus may take minutes to read; beyond the first shards, ids are looked at when rows are read.
        if (verify or scanned <= _SCANNED) and ids.size and int(ids.max()) >= index["vocab_size"]:
            raise UserError(f"{path}: {beyond(int(ids.max()), index['vocab_size'])}")
        documents = folder / entry["files"]["documents"]["file"]
        shards.append(
            Shard(number, first_row, entry["rows"], entry["sequences"], entry["first_document"], ids, documents)
        )
        first_row += entry["rows"]
    special = {f"{name}_id": value for name, value in index["special_ids"].items()}
    return Corpus(
        folder=folder,
        sequence_length=length,
        packed=index["packed"],
        num_rows=index["rows"],
        num_tokens=index["tokens"],
        num_sequences=index["sequences"],
        num_documents=index["documents"],
        vocab_size=index["vocab_size"],
        tokenizer_sha256=index["tokenizer_sha256"],
        **special,
        dtype=dtype,
        sha256=index["sha256"],
        token_counts=counts,
        shards=tuple(shards),
        index=index,
    )


def _check_file(folder: Path, entry: Mapping[str, Any], verify: bool) -> None:
    path = folder / entry["file"]
    if not path.is_file():
        raise UserError(f"{path}: missing from the corpus; {_AGAIN}")
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise UserError(f"{path}: {size} bytes instead of {entry['bytes']}; {_AGAIN}")
    if verify and file_sha256(path) != entry["sha256"]:
        raise UserError(f"{path}: damaged (sha256 differs from the index); {_AGAIN}")


def _read_counts(path: Path, index: Mapping[str, Any]) -> np.ndarray:
    try:
        # Mapped, because a file may claim any shape; nothing but the format for arrays is read.
        counts = np.array(np.lib.format.open_memmap(path, mode="r"))
    except (OSError, ValueError, EOFError, TypeError, OverflowError) as error:
        raise UserError(f"{path}: damaged ({one_line(error)}); {_AGAIN}") from error
    fits = counts.shape == (index["vocab_size"],) and counts.dtype == np.int64 and (counts >= 0).all()
    if not fits or int(counts.sum()) != index["tokens"]:
        raise UserError(f"{path}: damaged (does not add up to the index); {_AGAIN}")
    return counts
