"""A tiny WordPiece tokenizer with the attributes of `distil_jax.hf.Tokenizer`, and the slow, obvious ways to use it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from distil_jax.config import CorpusSettings

WORDS = "the cat dog sat on a mat and ran fast home to eat red fish with big old blue sea bird sky tree".split()  # noqa: SIM905
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = [*SPECIAL, *WORDS, *"abcdefghijklmnopqrstuvwxyz.,[]", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]


@dataclass(frozen=True)
class TinyTokenizer:
    backend: Any
    vocab_size: int = len(VOCABULARY)
    pad_id: int = 0
    unk_id: int = 1
    cls_id: int = 2
    sep_id: int = 3
    mask_id: int = 4
    lowercase: bool = True
    sha256: str = "f" * 64


def make_tokenizer(**changes: Any) -> TinyTokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece({w: i for i, w in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens(SPECIAL)
    backend.encode_special_tokens = True
    return TinyTokenizer(backend, **changes)


def naive_sequences(
    documents: Sequence[Sequence[str]],
    tokenizer: Any,
    length: int,
    *,
    sequence: str = "line",
    min_tokens: int = 12,
    max_unk_fraction: float = 0.5,
) -> tuple[list[tuple[int, tuple[int, ...]]], int, int]:
    """(document number, [CLS] ids [SEP]) of every sequence kept, and how many were too short and too unknown."""
    kept, short, unknown = [], 0, 0
    for number, lines in enumerate(documents):
        for line in lines if sequence == "line" else [" ".join(lines)]:
            ids = tokenizer.backend.encode(line, add_special_tokens=False).ids
            for i in range(0, len(ids), length - 2):
                one = (tokenizer.cls_id, *ids[i : i + length - 2], tokenizer.sep_id)
                if len(one) < min_tokens:
                    short += 1
                elif one.count(tokenizer.unk_id) / len(one) >= max_unk_fraction:
                    unknown += 1
                else:
                    kept.append((number, one))
    return kept, short, unknown


def sequences_of_rows(rows: Any, tokenizer: Any) -> list[tuple[int, ...]]:
    """The sequences of rows [n, L] in order, token by token; fails where a row is not sequences, then padding."""
    found: list[tuple[int, ...]] = []
    for row in rows.tolist():
        real = row[: len(row) - next((i for i, t in enumerate(reversed(row)) if t != tokenizer.pad_id), len(row))]
        assert tokenizer.pad_id not in real and real, "padding inside a row, or an empty row"
        one: list[int] = []
        for token in real:
            assert (token == tokenizer.cls_id) == (not one), "[CLS] must start a sequence and nothing else may"
            one.append(token)
            if token == tokenizer.sep_id:
                found.append(tuple(one))
                one = []
        assert not one, "a sequence is cut off at the end of a row"
    return found


@pytest.fixture
def tiny() -> TinyTokenizer:
    return make_tokenizer()


@pytest.fixture
def tokenizer_with() -> Callable[..., TinyTokenizer]:
    """Makes the tiny tokenizer with some attributes changed."""
    return make_tokenizer


@pytest.fixture
def naive() -> Callable[..., tuple[list[tuple[int, tuple[int, ...]]], int, int]]:
    return naive_sequences


@pytest.fixture
def unpack() -> Callable[[Any, Any], list[tuple[int, ...]]]:
    return sequences_of_rows


@pytest.fixture
def make_documents() -> Callable[..., list[list[str]]]:
    """Random documents of lines of 1 to 60 words, some with unknown characters, accents and "[CLS]"."""

    def make(count: int, seed: int = 0) -> list[list[str]]:
        random = np.random.default_rng(seed)
        extra = ["[CLS]", "[SEP]", "[PAD]", "日本", "Ünïcode", "...", "?!"]

        def line() -> str:
            size = int(random.integers(1, 61))
            odd = random.random() < 0.05
            words = random.choice(["日", "%"] if odd else [*WORDS, *extra], size)
            return " ".join(words.tolist())

        return [[line() for _ in range(random.integers(1, 6))] for _ in range(count)]

    return make


@pytest.fixture
def text(tmp_path: Path, make_documents: Callable) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join("\n".join(lines) for lines in make_documents(300)))
    return path


@pytest.fixture
def settings(tmp_path: Path, text: Path) -> CorpusSettings:
    return CorpusSettings(
        folder=str(tmp_path / "corpus"), train=(str(text),), sequence_length=32, block_bytes=4000, workers=1
    )
