from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import pytest

from distil_jax.data.corpus import packing
from distil_jax.data.corpus.packing import Recipe, best_fit, chunks, encode, pack, rows_of, token_dtype
from distil_jax.errors import UserError


def recipe(tokenizer: Any, **changes: Any) -> Recipe:
    special = {name: getattr(tokenizer, name) for name in ("vocab_size", "pad_id", "unk_id", "cls_id", "sep_id")}
    settings = {"sequence_length": 32, "pack": True, "sequence": "line", "min_tokens": 12, "max_unk_fraction": 0.5}
    return Recipe(**{**special, **settings, **changes})


def block(documents: list[list[str]]) -> str:
    return "".join("\n".join(lines) + "\n\n" for lines in documents)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("sequence", ["line", "document"])
@pytest.mark.parametrize("length", [13, 32, 512])
def test_rows_hold_exactly_the_naive_sequences(
    tiny: Any, naive: Callable, unpack: Callable, make_documents: Callable, length: int, sequence: str, packed: bool
) -> None:
    documents = make_documents(150)
    expected, short, unknown = naive(documents, tiny, length, sequence=sequence)
    rows = rows_of(block(documents), tiny.backend, recipe(tiny, sequence_length=length, sequence=sequence, pack=packed))
    found = unpack(rows.ids, tiny)
    assert Counter(zip(rows.documents.tolist(), found, strict=True)) == Counter(expected)
    assert (rows.dropped_short, rows.dropped_unknown) == (short, unknown)
    assert min(short, unknown) > 0, "the text must hold some of each"
    assert rows.ids.shape[1] == length and rows.ids.dtype == np.uint16
    counts = Counter(token for _, one in expected for token in one)
    assert rows.counts.tolist() == [counts[i] for i in range(tiny.vocab_size)]
    if packed:
        assert len(rows.ids) < len(found) or length == 13
    else:
        assert [(d, s) for d, s in zip(rows.documents.tolist(), found, strict=True)] == expected


def test_limits_are_inclusive_as_in_the_original(tiny: Any) -> None:
    def kept(line: str, **changes: Any) -> int:
        return len(rows_of(f"{line}\n\n", tiny.backend, recipe(tiny, **changes)).documents)

    assert kept("the " * 10) == 1  # 12 tokens with [CLS] and [SEP]
    assert kept("the " * 9) == 0
    assert kept("the " * 9, min_tokens=11) == 1
    assert kept("the " * 7 + "日 " * 7) == 1  # 7 of 16
    assert kept("the " * 6 + "日 " * 8) == 0  # 8 of 16
    assert kept("the " * 6 + "日 " * 8, max_unk_fraction=0.51) == 1
    assert kept("the " * 40) == 2  # chunks of 30 and 10 ids ...
    assert kept("the " * 39) == 1  # ... and a last one of 9, which is too short


def test_nothing_left(tiny: Any) -> None:
    rows = rows_of("too short\n\n", tiny.backend, recipe(tiny))
    assert rows.ids.shape == (0, 32) and rows.documents.shape == (0,) and rows.counts.sum() == 0


@pytest.fixture(scope="module")
def backends() -> dict[str, Any]:
    """Tokenizers that differ in what they take for a word: BERT's, RoBERTa's, SentencePiece's."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    letters = "abc,.!-1\u00e9\u6771\u4eac\u3000\u2028"
    word_piece = Tokenizer(models.WordPiece({x: i for i, x in enumerate(["[UNK]", *letters, "##a", "##b"])}))
    word_piece.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
    word_piece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("\u0120", "a"), ("a", "b"), ("\u0120a", "b"), ("\u0120", "\u0120"), (",", ",")]
    vocabulary = {x: i for i, x in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    byte_level = Tokenizer(models.BPE(vocabulary, merges))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    spaced = {x: i for i, x in enumerate(["<unk>", "\u2581", *letters, "\u2581a", "ab"])}
    metaspace = Tokenizer(models.BPE(spaced, [("\u2581", "a"), ("a", "b")], unk_token="<unk>"))
    metaspace.pre_tokenizer = pre_tokenizers.Metaspace()  # type: ignore[assignment]
    return {"WordPiece": word_piece, "byte-level BPE": byte_level, "Metaspace": metaspace}


LONG_LINES = {
    "spaces": "ab a  b   ab, " * 6000,
    "tabs": "ab\ta," * 14_000,
    "white space of other scripts": "ab\u3000a\u2028b\u00a0" * 14_000,
    "characters that BERT leaves out": "a\x1cb\x85a\x0bb\u200b" * 10_000 + " ab",
    "only punctuation": "ab,ab.a!" * 10_000,
    "Chinese": "\u6771\u4eac" * 40_000,
    "a long word among short ones": "ab " * 20_000 + "b" * 100_000 + " ab" * 20_000,
    "one word": "a" * 70_000,
}


@pytest.mark.parametrize(
    ("name", "line"),
    # A word of the last is all that is between spaces.
    [(name, line) for name in ("WordPiece", "byte-level BPE") for line in LONG_LINES]
    + [("Metaspace", line) for line, text in LONG_LINES.items() if " " in text],
)
def test_long_lines_have_the_ids_of_the_whole_line(backends: dict[str, Any], name: str, line: str) -> None:
    text = LONG_LINES[line]
    assert len(text) > packing.PIECE_CHARACTERS
    ids, lengths = encode([text, "ab"], backends[name])
    expected = [backends[name].encode(one, add_special_tokens=False).ids for one in (text, "ab")]
    assert lengths.tolist() == [*map(len, expected)]
    assert ids.tolist() == [*chain.from_iterable(expected)]


def test_a_word_without_end_is_read_in_pieces(tiny: Any) -> None:
    ids, lengths = encode(["a" * 1_000_000], tiny.backend)
    assert lengths.tolist() == [len(ids)] and 1 <= len(ids) < 10


def test_no_smallest_length(tiny: Any, unpack: Callable, naive: Callable, make_documents: Callable) -> None:
    documents = make_documents(30)
    rows = rows_of(block(documents), tiny.backend, recipe(tiny, min_tokens=0))
    assert rows.dropped_short == 0
    assert Counter(unpack(rows.ids, tiny)) == Counter(one for _, one in naive(documents, tiny, 32, min_tokens=0)[0])


def test_chunks_against_slices() -> None:
    lengths = np.array([0, 1, 9, 10, 11, 35, 0, 20])
    everything = np.arange(lengths.sum())
    runs = np.split(everything, np.cumsum(lengths)[:-1])
    expected = [(run[i : i + 10].tolist(), n) for n, run in enumerate(runs) for i in range(0, len(run), 10)]
    found = [
        (everything[s : s + k].tolist(), n) for s, k, n in zip(*(a.tolist() for a in chunks(lengths, 10)), strict=True)
    ]
    assert found == expected


def naive_best_fit(lengths: list[int], row_length: int) -> list[int]:
    """Free places of each row when every sequence goes where the least is left over: by looking at every row."""
    free: list[int] = []
    for length in lengths:
        candidates = [i for i, left in enumerate(free) if left >= length]
        if candidates:
            free[min(candidates, key=lambda i: free[i])] -= length
        else:
            free.append(row_length - length)
    return sorted(free)


@pytest.mark.parametrize("seed", range(5))
def test_best_fit_leaves_what_a_search_of_all_rows_leaves(seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(12, 65, 300).tolist()
    row, offset = best_fit(lengths, 64, 12)
    used: dict[int, list[tuple[int, int]]] = {}
    for r, o, n in zip(row.tolist(), offset.tolist(), lengths, strict=True):
        used.setdefault(r, []).append((o, n))
    assert sorted(used) == list(range(len(used)))
    for places in used.values():
        ends = [0, *(o + n for o, n in places)]
        assert [o for o, _ in places] == ends[:-1] and ends[-1] <= 64  # one after another, without gaps
    assert sorted(64 - sum(n for _, n in places) for places in used.values()) == naive_best_fit(lengths, 64)


def test_pack_is_best_fit_decreasing_in_the_order_of_the_text() -> None:
    lengths = np.random.default_rng(3).integers(12, 65, 500)
    row, _ = pack(lengths, 64, 12)
    left = sorted((64 - np.bincount(row, lengths)).astype(int).tolist())
    assert left == naive_best_fit(sorted(lengths.tolist(), reverse=True), 64)
    firsts = [int(np.flatnonzero(row == r)[0]) for r in range(row.max() + 1)]
    assert firsts == sorted(firsts)


def test_ids_that_text_may_not_give(tiny: Any, tokenizer_with: Callable) -> None:
    text = "the cat sat on the mat and the dog ran home fast\n\n"
    small = tokenizer_with(vocab_size=10)
    with pytest.raises(UserError, match="its vocabulary has 10"):
        rows_of(text, small.backend, recipe(small))
    the = tiny.backend.token_to_id("the")
    with pytest.raises(UserError, match=rf"its cls token \(id {the}\) out of plain text"):
        rows_of(text, tiny.backend, recipe(tiny, cls_id=the))


def test_dtype_holds_the_largest_id() -> None:
    assert [token_dtype(n) for n in (30522, 65536, 65537)] == ["<u2", "<u2", "<u4"]
