"""Trimmed vocabularies: a text that uses kept tokens alone is split as before, whatever the vocabulary."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distil_jax.errors import UserError
from distil_jax.hf import Tokenizer, Vocabulary, load_tokenizer

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
LETTERS = "abc"


def tokenizer_of(model: dict[str, Any], **parts: Any) -> Tokenizer:
    """The tokenizer of a tokenizer.json with this model, whose first tokens are SPECIAL."""
    added = [
        {"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        for number, token in enumerate(SPECIAL)
    ]
    raw = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{**token, "special": True} for token in added],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0], "trim_offsets": True}
        | {"add_prefix_space": False},
        "decoder": None,
        "model": model,
        **parts,
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text(json.dumps(raw))
        return load_tokenizer(folder)


def wordpiece(pieces: Sequence[str]) -> Tokenizer:
    tokens = [*SPECIAL, *LETTERS, *pieces]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    model = {"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##", "vocab": vocabulary}
    return tokenizer_of({**model, "max_input_chars_per_word": 100})


def bpe(pairs: Sequence[tuple[int, int]]) -> Tokenizer:
    """Each pair joins two of the tokens before it, by their numbers."""
    tokens, merges = [*LETTERS], []
    for one, two in pairs:
        merge = [tokens[one % len(tokens)], tokens[two % len(tokens)]]
        if merge not in merges:
            merges.append(merge)
            tokens.append("".join(merge))
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*SPECIAL, *tokens]))}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "", "vocab": vocabulary}
    return tokenizer_of({**model, "end_of_word_suffix": "", "fuse_unk": False, "merges": merges})


def unigram(scores: dict[str, float]) -> Tokenizer:
    scored = {**dict.fromkeys(SPECIAL, 0.0), **dict.fromkeys(LETTERS, -9.0), **scores}
    return tokenizer_of({"type": "Unigram", "unk_id": 3, "vocab": [[*item] for item in scored.items()]})


words = st.text(alphabet=LETTERS, min_size=1, max_size=4)
longer = words.filter(lambda word: len(word) > 1)
vocabularies = st.one_of(
    st.lists(st.one_of(longer, words.map("##".__add__)), max_size=14).map(wordpiece),
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=14).map(bpe),
    st.dictionaries(longer, st.integers(-20, -1).map(float), max_size=14).map(unigram),
)


@settings(max_examples=60, deadline=None)
@given(vocabularies, st.lists(st.text(alphabet=f"{LETTERS}  z", max_size=14), max_size=12), st.data())
def test_texts_of_kept_tokens_are_split_as_before(tokenizer: Tokenizer, texts: list[str], data: st.DataObject) -> None:
    vocabulary = Vocabulary(tokenizer)
    wanted = data.draw(st.sets(st.integers(0, tokenizer.vocab_size - 1)))
    kept = sorted({one for number in {*wanted, *vocabulary.required} for one in vocabulary.needed(number)})
    trimmed = vocabulary.trimmed(kept, "roberta")
    assert trimmed.vocab_size == len(kept)
    assert trimmed.tokens() == [tokenizer.backend.id_to_token(number) for number in kept]
    for text in texts:
        before, after = (one.backend.encode(text).ids for one in (tokenizer, trimmed))
        if {*before} <= {*kept} and tokenizer.unk_id not in before:
            assert [kept[number] for number in after] == before


@settings(max_examples=15, deadline=None)
@given(vocabularies)
def test_all_tokens_make_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    trimmed = Vocabulary(tokenizer).trimmed(range(tokenizer.vocab_size), "roberta")
    assert trimmed.sha256 == tokenizer.sha256


def test_what_a_token_is_joined_of_is_needed() -> None:
    """Of every rule that makes it."""
    tokenizer = bpe([(0, 1), (1, 2), (3, 2), (0, 4)])  # ab, bc, ab+c, a+bc
    ids = {token: number for number, token in enumerate(tokenizer.tokens())}
    needed = Vocabulary(tokenizer).needed(ids["abc"])
    assert {tokenizer.tokens()[number] for number in needed} == {"a", "b", "c", "ab", "bc", "abc"}


def test_single_characters_and_specials_are_required() -> None:
    tokenizer = wordpiece(["##a", "##bc", "ab"])
    tokens = {tokenizer.tokens()[number] for number in Vocabulary(tokenizer).required}
    assert tokens == {*SPECIAL, *LETTERS, "##a"}


def test_other_models_are_refused() -> None:
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, "a", "the"])}
    with pytest.raises(UserError, match="WordLevel"):
        Vocabulary(tokenizer_of({"type": "WordLevel", "unk_token": "<unk>", "vocab": vocabulary}))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_real_vocabularies(family: str, shared: Path, tmp_path: Path) -> None:
    files = {"bert": ["bert-base-uncased-vocab.txt"], "roberta": ["roberta-base-vocab.json", "roberta-base-merges.txt"]}
    for name in files[family]:
        short = name.removeprefix("roberta-base-") if "roberta" in name else "vocab.txt"
        (tmp_path / short).write_bytes((shared / "data" / "vocab" / name).read_bytes())
    tokenizer = load_tokenizer(tmp_path)
    texts = (shared / "data" / "glue" / "SST-2" / "dev.tsv").read_text(encoding="utf-8").splitlines()
    vocabulary = Vocabulary(tokenizer)
    used = {number for text in texts[::2] for number in tokenizer.backend.encode(text).ids}
    kept = sorted({one for number in {*used, *vocabulary.required} for one in vocabulary.needed(number)})
    trimmed = vocabulary.trimmed(kept, family)
    equal = 0
    for text in texts:
        before, after = (one.backend.encode(text).ids for one in (tokenizer, trimmed))
        if {*before} <= {*kept} and tokenizer.unk_id not in before:
            assert [kept[number] for number in after] == before
            equal += 1
    assert equal > len(texts) // 2
