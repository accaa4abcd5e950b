"""Text to shards: nothing is lost, nothing is added, and what was left out is counted."""

from __future__ import annotations

import dataclasses
import json
import lzma
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distil_jax.config import CorpusSettings
from distil_jax.data.corpus.prepare import PrepareProgress, prepare
from distil_jax.data.corpus.tokens import open_corpus
from distil_jax.errors import UserError
from distil_jax.hf import load_tokenizer


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def folder_of(settings: CorpusSettings) -> Path:
    return Path(settings.folder) / "train"


def test_nothing_of_the_text_is_lost(
    settings: CorpusSettings, tiny: Any, make_documents: Callable, naive: Callable, unpack: Callable
) -> None:
    corpus = prepare(settings, "train", tiny)
    expected, short, unknown = naive(make_documents(300), tiny, 32)
    found = unpack(corpus.row_range(0, corpus.num_rows), tiny)
    documents = np.concatenate([shard.documents() for shard in corpus.shards]).tolist()
    assert Counter(zip(documents, found, strict=True)) == Counter(expected)
    assert corpus.index["dropped"] == {"short": short, "unknown": unknown, "bad_lines": 0}
    assert corpus.num_documents == 300 and len(corpus.shards) > 10
    names = {"index.json", "prepare.json", "token_counts.npy"}
    shards = {f"{part}-{i:05d}.bin" for part in ("tokens", "documents") for i in range(len(corpus.shards))}
    assert set(contents(folder_of(settings))) == names | shards
    assert open_corpus(folder_of(settings), verify=True).sha256 == corpus.sha256


def test_documents_larger_than_a_block_keep_their_number(
    tmp_path: Path, tiny: Any, naive: Callable, unpack: Callable, make_documents: Callable
) -> None:
    long = [[*chain.from_iterable(make_documents(40, seed=1))]]
    documents = [*make_documents(3), *long, *make_documents(3, seed=2)]
    (tmp_path / "a.txt").write_text("\n\n".join("\n".join(lines) for lines in documents))
    corpus = prepare(
        CorpusSettings(
            folder=str(tmp_path / "c"),
            train=(str(tmp_path / "a.txt"),),
            sequence_length=32,
            block_bytes=3000,
            workers=1,
        ),
        "train",
        tiny,
    )
    numbers = np.concatenate([shard.documents() for shard in corpus.shards]).tolist()
    found = unpack(corpus.row_range(0, corpus.num_rows), tiny)
    assert Counter(zip(numbers, found, strict=True)) == Counter(naive(documents, tiny, 32)[0])
    assert len(corpus.shards) > 4 and corpus.num_documents == 7


def test_special_tokens_in_text_are_text(tmp_path: Path, tiny: Any) -> None:
    (tmp_path / "a.txt").write_text("[CLS] the [SEP] cat [PAD] sat [MASK] on the mat and ran fast\n")
    corpus = prepare(
        CorpusSettings(folder=str(tmp_path / "c"), train=(str(tmp_path / "a.txt"),), sequence_length=64), "train", tiny
    )
    row = corpus.read(np.array([0]))[0].tolist()
    assert [row.count(i) for i in (tiny.cls_id, tiny.sep_id, tiny.mask_id)] == [1, 1, 0]
    switched = dataclasses.replace(tiny, backend=type(tiny.backend).from_str(tiny.backend.to_str()))
    switched.backend.enable_truncation(4)
    switched.backend.encode_special_tokens = False
    other = prepare(
        CorpusSettings(folder=str(tmp_path / "d"), train=(str(tmp_path / "a.txt"),), sequence_length=64),
        "train",
        switched,
    )
    assert other.sha256 == corpus.sha256  # the tokenizer's own switches don't matter


def test_text_of_which_nothing_is_left(tmp_path: Path, tiny: Any) -> None:
    (tmp_path / "a.txt").write_text("too short\n")
    with pytest.raises(UserError, match=r"no sequence is left.*1 too short"):
        prepare(
            CorpusSettings(folder=str(tmp_path / "c"), train=(str(tmp_path / "a.txt"),), sequence_length=128),
            "train",
            tiny,
        )
    with pytest.raises(UserError, match="no finished corpus"):
        open_corpus(tmp_path / "c" / "train")


def test_max_documents_and_progress(settings: CorpusSettings, tiny: Any, text: Path, make_documents: Callable) -> None:
    (text.parent / "first.txt").write_text("\n\n".join("\n".join(lines) for lines in make_documents(300)[:120]))
    first = prepare(
        dataclasses.replace(settings, train=(str(text.parent / "first.txt"),), folder=str(text.parent / "first")),
        "train",
        tiny,
    )
    seen: list[PrepareProgress] = []
    limited = prepare(dataclasses.replace(settings, max_documents=120), "train", tiny, progress=seen.append)
    assert limited.sha256 == first.sha256 and limited.num_documents == 120
    assert [p.blocks for p in seen] == list(range(1, len(limited.shards) + 1))
    assert seen[-1].tokens == limited.num_tokens and seen[-1].bytes_total == text.stat().st_size
    assert all(a.bytes_read <= b.bytes_read for a, b in pairwise(seen))


def test_no_smallest_length(settings: CorpusSettings, tiny: Any) -> None:
    corpus = prepare(dataclasses.replace(settings, min_tokens=0), "train", tiny)
    assert corpus.index["dropped"]["short"] == 0


def test_row_sources_make_the_same_corpus_as_text(tmp_path: Path, settings: CorpusSettings, tiny: Any) -> None:
    corpus = prepare(settings, "train", tiny)
    rows = Path(settings.train[0]).read_text().split("\n\n")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": row}) + "\n" for row in rows))
    changes = {"train": (str(tmp_path / "a.jsonl"),), "text_column": "body", "folder": str(tmp_path / "rows")}
    assert prepare(dataclasses.replace(settings, **changes), "train", tiny).sha256 == corpus.sha256


def test_real_text_and_vocabulary(
    tmp_path: Path, shared: Path, tokenizer_with: Callable, naive: Callable, unpack: Callable
) -> None:
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(str(shared / "data/vocab/bert-base-uncased-tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    bert = tokenizer_with(vocab_size=30522, pad_id=0, unk_id=100, cls_id=101, sep_id=102, mask_id=103)
    bert = dataclasses.replace(bert, backend=backend)
    with lzma.open(shared / "data/text/enwiki2015_valid.txt.xz", "rt", encoding="utf8") as stream:
        lines = stream.read(1_500_000).split("\n")[:-1]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    corpus = prepare(
        CorpusSettings(
            folder=str(tmp_path / "c"),
            train=(str(tmp_path / "a.txt"),),
            sequence_length=128,
            block_bytes=1 << 19,
            workers=2,
        ),
        "train",
        bert,
    )
    documents: list[list[str]] = [[]]
    for line in lines:
        documents = [*documents[:-1], [*documents[-1], line]] if line.strip() else [*documents, []]
    expected, short, _ = naive([d for d in documents if d], bert, 128)
    numbers = np.concatenate([shard.documents() for shard in corpus.shards]).tolist()
    found = zip(numbers, unpack(corpus.row_range(0, corpus.num_rows), bert), strict=True)
    assert Counter(found) == Counter(expected)
    assert corpus.index["dropped"]["short"] == short
    assert corpus.fill > 0.97


def test_what_a_user_should_know_is_noted(tmp_path: Path, tiny: Any) -> None:
    line = "the cat sat on a mat and ran fast home\n"
    (tmp_path / "wiki.txt").write_text(f'<doc id="1" url="x" title="y">\n{line * 3}</doc>\n')
    (tmp_path / "plain.txt").write_text(line)

    def made(name: str, **changes: Any) -> Any:
        folder = tmp_path / "-".join(("corpus", name, *changes.values()))
        settings = CorpusSettings(
            folder=str(folder), train=(str(tmp_path / name),), sequence_length=32, min_tokens=3, workers=1, **changes
        )
        corpus = prepare(settings, "train", tiny)
        assert prepare(settings, "train", tiny).notes == corpus.notes
        return corpus

    kept, dropped = made("wiki.txt"), made("wiki.txt", markup="drop")
    assert all(any("<doc" in note and "2" in note for note in corpus.notes) for corpus in (kept, dropped))
    assert (kept.num_sequences, dropped.num_sequences) == (5, 3)
    assert made("plain.txt").notes == ()


def test_a_byte_level_vocabulary(tmp_path: Path, shared: Path, unpack: Callable) -> None:
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(shared / "data" / "vocab" / f"roberta-base-{name}", tmp_path / name)
    roberta = load_tokenizer(tmp_path)
    lines = [
        "A naïve <s> caf\u00e9, <mask>  with 1234 Unfriendliest \u6771\u4eac </s> in it.",
        " ".join(f"word {number}" for number in range(100)),
    ]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    wanted = CorpusSettings(folder=str(tmp_path / "c"), train=(str(tmp_path / "a.txt"),), sequence_length=64)
    corpus = prepare(wanted, "train", roberta)
    found = unpack(corpus.row_range(0, corpus.num_rows), roberta)
    assert roberta.mask_id not in [*chain.from_iterable(found)]
    decoded = [roberta.backend.decode(list(one[1:-1]), skip_special_tokens=False) for one in found]
    assert lines[0] in decoded
    assert "".join(sorted(set(decoded) - {lines[0]}, key=lines[1].find)) == lines[1]
