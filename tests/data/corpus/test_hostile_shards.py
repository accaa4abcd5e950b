"""Token shards from strangers: nothing in an index, a shard or a sidecar is believed before it was looked at."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distil_jax.config import CorpusSettings
from distil_jax.data.corpus import prepare as prepare_module
from distil_jax.data.corpus.plan import make_plan
from distil_jax.data.corpus.prepare import prepare
from distil_jax.data.corpus.sources import resolve
from distil_jax.data.corpus.tokens import Corpus, canonical, open_corpus
from distil_jax.errors import UserError

pytestmark = pytest.mark.fault("hostile token shards")


@pytest.fixture
def corpus(tmp_path: Path, tiny: Any, make_documents: Callable) -> Corpus:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join("\n".join(lines) for lines in make_documents(60)))
    return prepare(
        CorpusSettings(
            folder=str(tmp_path / "corpus"), train=(str(text),), sequence_length=32, block_bytes=5000, workers=1
        ),
        "train",
        tiny,
    )


def change_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the index and gives it the digest that fits, as somebody who means it would."""
    index = json.loads((folder / "index.json").read_bytes())
    del index["index_sha256"]
    change(index)
    index["index_sha256"] = hashlib.sha256(canonical(index)).hexdigest()
    (folder / "index.json").write_bytes(canonical(index))


def shard(number: int = 0) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda index: index["shards"][number]


INDEX_CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a file outside": lambda index: shard()(index)["files"]["tokens"].update(file="../../../etc/passwd"),
    "a file from the root": lambda index: shard()(index)["files"]["documents"].update(file="/etc/passwd"),
    "another shard's file": lambda index: shard(1)(index)["files"]["tokens"].update(file="tokens-00000.bin"),
    "objects for numbers": lambda index: index.update(dtype="O"),
    "a structure": lambda index: index.update(dtype=[["a", "<u2"]]),
    "a dtype too small": lambda index: index.update(vocab_size=1 << 17),
    "rows beyond the file": lambda index: shard()(index).update(rows=1 << 40),
    "negative rows": lambda index: shard()(index).update(rows=-1),
    "rows that do not add up": lambda index: index.update(rows=index["rows"] + 1),
    "a row of a billion": lambda index: index.update(sequence_length=1 << 30),
    "no length": lambda index: index.update(sequence_length=0),
    "a length that is true": lambda index: index.update(sequence_length=True),
    "a text for a length": lambda index: index.update(sequence_length="32"),
    "a special id beyond": lambda index: index["special_ids"].update(mask=index["vocab_size"]),
    "a special id more": lambda index: index["special_ids"].update(bos=1),
    "no special ids": lambda index: index.update(special_ids=None),
    "shards that are none": lambda index: index.update(shards=[1, 2]),
    "no shards": lambda index: index.pop("shards"),
    "counts elsewhere": lambda index: index["token_counts"].update(file="../counts.npy"),
    "a version of a megabyte": lambda index: index.update(version="9\n" * 500_000),
}


@pytest.mark.parametrize("name", INDEX_CHANGES)
def test_an_index_is_not_believed(corpus: Corpus, name: str) -> None:
    change_index(corpus.folder, INDEX_CHANGES[name])
    with pytest.raises(UserError, match=r"index\.json: (damaged index|format version)") as caught:
        open_corpus(corpus.folder)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def poison(folder: Path, number: int, row: int, value: int) -> str:
    """Writes an id into a shard; the file keeps its size, as a damage on disk does."""
    path = folder / f"tokens-{number:05d}.bin"
    ids = np.fromfile(path, "<u2").reshape(-1, 32)
    ids[row, 3] = value
    path.write_bytes(ids.tobytes())
    return path.name


def test_ids_beyond_the_vocabulary_are_found_when_the_corpus_is_opened(corpus: Corpus) -> None:
    name = poison(corpus.folder, 2, 1, corpus.vocab_size)
    with pytest.raises(
        UserError, match=rf"{name}: holds id {corpus.vocab_size}, the vocabulary has {corpus.vocab_size}"
    ):
        open_corpus(corpus.folder)


def test_ids_beyond_the_vocabulary_never_reach_a_model(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus too large to be looked through at the start: every row is looked at when it is read."""
    name = poison(corpus.folder, 2, 1, 60_000)
    monkeypatch.setattr("distil_jax.data.corpus.tokens._SCANNED", 0)
    opened = open_corpus(corpus.folder)
    bad = opened.shards[2].first_row + 1
    good = np.setdiff1d(np.arange(opened.num_rows), [bad])
    assert opened.read(good).max() < opened.vocab_size
    for rows in ([bad], [0, bad, 1], [bad, bad]):
        with pytest.raises(UserError, match=rf"{name}, row {bad} of the corpus: holds id 60000, the vocabulary has"):
            opened.read(np.array(rows))


@pytest.mark.parametrize("content", ["pickle", "objects", "zip", "huge", "negative", "text"])
def test_token_counts_are_only_numbers(corpus: Corpus, tmp_path: Path, content: str) -> None:
    path = corpus.folder / "token_counts.npy"
    size = path.stat().st_size
    header = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118)
    shape = {"huge": str((1 << 50,)), "objects": f"({corpus.vocab_size},)"}.get(content, "(1,)")
    dtype = {"objects": "|O"}.get(content, "<i8")
    described = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    data = {
        "pickle": b"cos\nsystem\n(S'touch x'\ntR.",
        "zip": b"PK\x03\x04",
        "text": b"x",
        "negative": b"",
    }.get(content, header + described)
    if content == "negative":
        counts = np.load(path)
        counts[0], counts[5] = -1, counts[5] + 1
        np.save(path, counts)
    else:
        path.write_bytes(data.ljust(size, b"\0"))
    with pytest.raises(UserError, match=r"token_counts\.npy: damaged"):
        open_corpus(corpus.folder)


@pytest.mark.parametrize("change", ["outside", "beyond", "shorter", "no files", "a list"])
def test_a_sidecar_is_not_believed(tmp_path: Path, tiny: Any, make_documents: Callable, change: str) -> None:
    """What an interrupted run has left is made again where it could not be what that run wrote."""
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join("\n".join(lines) for lines in make_documents(60)))
    settings_ = CorpusSettings(
        folder=str(tmp_path / "corpus"), train=(str(text),), sequence_length=32, block_bytes=5000, workers=1
    )
    whole = prepare(settings_, "train", tiny)
    before = whole.read(np.arange(whole.num_rows))
    folder, entry = whole.folder, dict(whole.index["shards"][0])
    job = prepare_module._job(
        settings_, folder, tiny, make_plan(settings_, settings_.train, resolve(settings_.train), tiny)
    )
    if change == "outside":
        outside = tmp_path / "outside.bin"
        outside.write_bytes((folder / "tokens-00000.bin").read_bytes())
        entry["files"]["tokens"]["file"] = "../outside.bin"
    elif change == "beyond":
        poison(folder, 0, 0, 60_000)
        data = (folder / "tokens-00000.bin").read_bytes()
        entry["files"]["tokens"]["sha256"] = hashlib.sha256(data).hexdigest()
    elif change == "shorter":
        entry["rows"] -= 1
    elif change == "no files":
        entry["files"] = None
    saved: Any = [] if change == "a list" else {"fingerprint": job.fingerprint, "entry": entry}
    (folder / "block-00000.json").write_bytes(canonical(saved))
    (folder / "index.json").unlink()
    again = prepare(settings_, "train", tiny)
    np.testing.assert_array_equal(again.read(np.arange(again.num_rows)), before)
    assert again.sha256 == whole.sha256
