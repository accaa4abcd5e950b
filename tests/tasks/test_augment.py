"""Changed copies of texts: how much changes, what never does."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distil_jax.hf import load_tokenizer
from distil_jax.tasks.augment import augment_ids, continuation_table, word_tokens

PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL = (PAD, UNK, CLS, SEP, MASK)
CONTINUATION = np.arange(60) >= 40  # ids 5 to 39 begin words


def augment(ids: np.ndarray, seed: int, *, masking: float = 0.0, shuffling: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    table, given_ids = CONTINUATION, ids.copy()
    found = augment_ids(
        ids, rng, masking=masking, shuffling=shuffling, continuation=table, special_ids=SPECIAL, mask_id=MASK
    )
    np.testing.assert_array_equal(ids, given_ids)
    assert found.dtype == np.int32 and found.shape == ids.shape and found is not ids
    return found


def words_of(ids: np.ndarray) -> list[tuple[int, ...]]:
    """The words and special tokens of a text, found token by token."""
    found: list[tuple[int, ...]] = []
    for token in ids.tolist():
        if found and token >= 40 and found[-1][0] not in SPECIAL:
            found[-1] = (*found[-1], token)
        else:
            found.append((token,))
    return found


def make_text(seed: int, words: int) -> np.ndarray:
    """[CLS] words [SEP] words [SEP], all words different where there are fewer than 35, each of 1 to 3 tokens."""
    rng = np.random.default_rng(seed)
    units = [[5 + number % 35, *rng.integers(40, 60, rng.integers(0, 3)).tolist()] for number in rng.permutation(words)]
    half = words // 2
    return np.array(list(itertools.chain([CLS], *units[:half], [SEP], *units[half:], [SEP])), np.int32)


any_text = st.lists(st.integers(0, 59), max_size=30).map(lambda ids: np.array(ids, np.int32))


@given(any_text, st.integers(0, 9))
def test_masking_takes_whole_words_and_nothing_else(ids: np.ndarray, seed: int) -> None:
    found, place = augment(ids, seed, masking=0.5), 0
    for word in words_of(ids):
        new = tuple(found[place : place + len(word)].tolist())
        assert new in (word, (MASK,) * len(word)), "a word is masked as a whole or not at all"
        assert new == word or word[0] not in SPECIAL
        place += len(word)


@given(any_text, st.integers(0, 9))
def test_shuffling_moves_whole_words_one_place(ids: np.ndarray, seed: int) -> None:
    found = augment(ids, seed, shuffling=0.6)
    fixed = np.isin(ids, SPECIAL)
    np.testing.assert_array_equal(found[fixed], ids[fixed])
    assert sorted(found.tolist()) == sorted(ids.tolist())
    assert _made_of(tuple(found.tolist()), words_of(ids))


def _made_of(ids: tuple[int, ...], words: list[tuple[int, ...]]) -> bool:
    """Whether ids are these words, each in its place or exchanged with the next (words may look alike)."""
    reached = {0: {0}}  # by number of words: how many ids they may make
    for number in range(len(words)):
        for place in reached.get(number, set()):
            for step in (1, 2):
                made = tuple(itertools.chain(*words[number : number + step][::-1]))
                if ids[place : place + len(made)] == made and number + step <= len(words):
                    reached.setdefault(number + step, set()).add(place + len(made))
    return len(ids) in reached.get(len(words), set())


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_shares_of_words(share: float) -> None:
    texts = [make_text(seed, 34) for seed in range(400)]
    total = sum(len(words_of(ids)) - 3 for ids in texts)
    masked = moved = 0
    for seed, ids in enumerate(texts):
        gone = augment(ids, seed, masking=share) == MASK
        masked += sum(5 <= token < 40 for token in ids[gone].tolist())
        new = words_of(augment(ids, seed, shuffling=share))
        moved += sum(left != right for left, right in zip(words_of(ids), new, strict=True))
    assert masked / total == pytest.approx(share, abs=0.015)
    assert moved / total == pytest.approx(share, abs=0.05)
    assert moved / total < share + 0.01


def test_all_words() -> None:
    ids = make_text(0, 20)
    masked = augment(ids, 0, masking=1.0)
    np.testing.assert_array_equal(masked, np.where(np.isin(ids, SPECIAL), ids, MASK))
    swapped, words = words_of(augment(ids, 0, shuffling=1.0)), words_of(ids)
    for begin in (1, 12):  # ten words in each text
        for place in range(begin, begin + 10, 2):
            assert swapped[place : place + 2] == words[place : place + 2][::-1]


def test_nothing_to_do() -> None:
    ids = make_text(1, 20)
    np.testing.assert_array_equal(augment(ids, 0), ids)
    for odd in ([], [CLS, SEP], [CLS, 7, SEP], [45]):
        np.testing.assert_array_equal(augment(np.array(odd, np.int32), 0, shuffling=1.0), odd)
    np.testing.assert_array_equal(augment(np.array([45, 46], np.int32), 0, masking=1.0), [MASK, MASK])


def test_the_generator_decides() -> None:
    ids = make_text(2, 30)
    one, same, other = (augment(ids, seed, masking=0.3, shuffling=0.3) for seed in (4, 4, 5))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_continuations_of_a_vocabulary(tmp_path: Path) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "##", "#", "###"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    table = continuation_table(load_tokenizer(tmp_path))
    assert table.dtype == bool
    assert [tokens[i] for i in np.flatnonzero(table)] == ["##ing", "###"]


def test_spare_entries_of_a_vocabulary_are_no_words(tmp_path: Path) -> None:
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "[unused0]",
        "[unused99]",
        "<unused7>",
        "unused",
        "a",
        "##b",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    tokenizer = load_tokenizer(tmp_path)
    allowed = word_tokens(tokenizer, continuation_table(tokenizer))
    assert [token for token, flag in zip(tokens, allowed, strict=True) if flag] == ["unused", "a"]


def test_continuations_of_a_byte_level_vocabulary(shared: Path, tmp_path: Path) -> None:
    """As the tokenizer itself numbers words, where letters, digits and marks do not meet without a space."""
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(shared / "data" / "vocab" / f"roberta-base-{name}", tmp_path / name)
    tokenizer = load_tokenizer(tmp_path)
    table = continuation_table(tokenizer)
    text = "Unfriendliest neighbours don't retokenise 1234567 na\u00efve caf\u00e9s, \u6771\u4eac! It's 50265 pieces."
    found = tokenizer.backend.encode(text, add_special_tokens=False)
    words = np.array(found.word_ids)
    starts = np.concatenate([[True], words[1:] != words[:-1]])
    continued = table[found.ids]
    assert continued.any()
    np.testing.assert_array_equal(continued[1:], ~starts[1:])
