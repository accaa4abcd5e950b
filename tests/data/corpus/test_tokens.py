from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distil_jax.config import CorpusSettings
from distil_jax.data.corpus.prepare import prepare
from distil_jax.data.corpus.tokens import Corpus, canonical, open_corpus, write_file
from distil_jax.errors import UserError


@pytest.fixture
def corpus(tmp_path: Path, tiny: Any, make_documents: Callable) -> Corpus:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join("\n".join(lines) for lines in make_documents(200)))
    return prepare(
        CorpusSettings(
            folder=str(tmp_path / "corpus"), train=(str(text),), sequence_length=32, block_bytes=5000, workers=1
        ),
        "train",
        tiny,
    )


def all_rows(corpus: Corpus) -> np.ndarray:
    """Every row, from the bytes on disk."""
    names = sorted(path for path in os.listdir(corpus.folder) if path.startswith("tokens-"))
    data = b"".join((corpus.folder / name).read_bytes() for name in names)
    return np.frombuffer(data, "<u2").reshape(-1, corpus.sequence_length)


def test_read_gathers_any_rows_in_any_order(corpus: Corpus) -> None:
    expected = all_rows(corpus)
    assert len(corpus.shards) > 5 and len(expected) == corpus.num_rows
    random = np.random.default_rng(0)
    for rows in (random.integers(0, corpus.num_rows, 500), np.arange(corpus.num_rows)[::-1], np.array([], np.int64)):
        found = corpus.read(rows)
        assert found.dtype == np.uint16 and found.flags.writeable
        np.testing.assert_array_equal(found, expected[rows])
    np.testing.assert_array_equal(corpus.row_range(3, 90), expected[3:90])
    for bad in (-1, corpus.num_rows):
        with pytest.raises(IndexError, match="of a corpus with rows 0"):
            corpus.read(np.array([0, bad]))


def test_numbers_of_the_index(corpus: Corpus, tiny: Any) -> None:
    rows = all_rows(corpus)
    counts = np.bincount(rows.reshape(-1), minlength=tiny.vocab_size)
    counts[tiny.pad_id] = 0
    np.testing.assert_array_equal(corpus.token_counts, counts)
    assert corpus.num_tokens == (rows != tiny.pad_id).sum()
    assert corpus.num_sequences == (rows == tiny.cls_id).sum()
    assert corpus.fill == pytest.approx((rows != tiny.pad_id).mean())
    assert (corpus.pad_id, corpus.unk_id, corpus.cls_id, corpus.sep_id, corpus.mask_id) == (0, 1, 2, 3, 4)
    assert (corpus.tokenizer_sha256, corpus.vocab_size, corpus.packed) == (tiny.sha256, tiny.vocab_size, True)
    numbers = np.concatenate([shard.documents() for shard in corpus.shards])
    assert len(numbers) == corpus.num_sequences
    assert set(numbers.tolist()) <= set(range(200)) and corpus.num_documents == 200
    firsts = [shard.first_document for shard in corpus.shards]
    assert firsts == sorted(firsts)


def test_uint32_for_large_vocabularies(tmp_path: Path, tokenizer_with: Callable) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat and the dog ran home fast\n" * 3)
    corpus = prepare(
        CorpusSettings(folder=str(tmp_path / "corpus"), train=(str(text),), sequence_length=128),
        "train",
        tokenizer_with(vocab_size=100_000),
    )
    assert corpus.dtype == np.uint32 and corpus.read(np.array([0])).dtype == np.uint32
    assert len(corpus.token_counts) == 100_000


def test_folders_that_are_no_corpus(tmp_path: Path, corpus: Corpus) -> None:
    with pytest.raises(UserError, match=r"no such folder; make it with `distil-jax prepare`"):
        open_corpus(tmp_path / "nothing")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "train").symlink_to(corpus.folder)
    with pytest.raises(UserError, match=r"parts: holds the parts train .* give one, such as .*/parts/train"):
        open_corpus(tmp_path / "parts")
    (corpus.folder / "index.json").rename(tmp_path / "index.json")
    with pytest.raises(UserError, match=r"no finished corpus here; make it with `distil-jax prepare`"):
        open_corpus(corpus.folder)
    (corpus.folder / "index.json").write_text('{"format": "something else"}')
    with pytest.raises(UserError, match="not the index of distil_jax tokens"):
        open_corpus(corpus.folder)


@pytest.mark.parametrize("name", ["tokens-00002.bin", "documents-00000.bin", "token_counts.npy"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "longer", "flipped"])
def test_damaged_files_are_named(corpus: Corpus, name: str, damage: str) -> None:
    path = corpus.folder / name
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[:-2])
    elif damage == "longer":
        path.write_bytes(data + b"\0\0")
    elif damage == "flipped":
        data[-8] ^= 1
        path.write_bytes(data)
    if damage == "flipped" and name != "token_counts.npy":
        open_corpus(corpus.folder)  # the size alone does not show it ...
    with pytest.raises(UserError, match=name):
        open_corpus(corpus.folder, verify=True)  # ... its hash does
    if damage != "flipped":
        with pytest.raises(UserError, match=name):
            open_corpus(corpus.folder)


def test_a_changed_index_is_noticed(corpus: Corpus) -> None:
    path = corpus.folder / "index.json"
    whole = path.read_text()
    for changed in (
        whole.replace('"cls": 2', '"cls": 3'),
        whole[:-40],
        "",
        whole.replace('"version": 2', '"version": 3'),
    ):
        assert changed != whole
        path.write_text(changed)
        with pytest.raises(UserError, match=r"index\.json: (damaged|format version 3)"):
            open_corpus(corpus.folder)


def test_verify_looks_at_the_ids(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distil_jax.data.corpus.tokens.read_index", lambda _: {**corpus.index, "vocab_size": 5})
    monkeypatch.setattr("distil_jax.data.corpus.tokens._read_counts", lambda *_: corpus.token_counts)
    with pytest.raises(UserError, match=r"tokens-00000\.bin: holds id \d+, the vocabulary has 5"):
        open_corpus(corpus.folder, verify=True)


def test_identity_is_the_data_not_the_place(
    tmp_path: Path, corpus: Corpus, tiny: Any, tokenizer_with: Callable
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(corpus.folder, moved)
    assert open_corpus(moved, verify=True).sha256 == corpus.sha256
    shutil.copy(tmp_path / "text.txt", tmp_path / "copy.txt")
    settings = CorpusSettings(
        folder=str(tmp_path / "b"), train=(str(tmp_path / "copy.txt"),), sequence_length=32, block_bytes=5000
    )
    assert prepare(settings, "train", tiny).sha256 == corpus.sha256
    (tmp_path / "copy.txt").write_text((tmp_path / "text.txt").read_text().replace("cat", "dog", 1))
    shutil.rmtree(tmp_path / "b")
    assert prepare(settings, "train", tiny).sha256 != corpus.sha256


def test_write_file_leaves_nothing_half_written(tmp_path: Path) -> None:

    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(UserError, match=r"no/a: cannot be written"):
        write_file(tmp_path / "no" / "a", b"new")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        write_file(tmp_path / "folder", b"new")
    assert sorted(os.listdir(tmp_path)) == ["a", "folder"]
    write_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert json.loads(canonical({"b": 1, "a": "é\udc80"})) == {"a": "é\udc80", "b": 1}
