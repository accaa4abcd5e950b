"""A WordPiece vocabulary of one's own: the same every time, complete, and one that takes text apart losslessly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distil_jax.data.corpus.vocabulary import train_wordpiece
from distil_jax.hf import load_tokenizer, save_tokenizer

ROOT = Path(__file__).resolve().parents[3]
LINES = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "Training a tokenizer twice must give the same tokens; ties are common: ab ac ad ba bc bd ca cb cd.",
    "Café and naïve keep their letters when case is kept, Ünïcode too.",
] * 3


def test_the_same_in_every_process() -> None:
    code = f"""
from distil_jax.data.corpus.vocabulary import train_wordpiece
print(train_wordpiece({LINES!r}, 150).sha256)
print(*train_wordpiece({LINES!r}, 150).tokens())
"""
    found = []
    for seed in ("1", "2", "3"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": "true"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(done.stdout)
    assert found[0] == found[1] == found[2]
    assert len(found[0].splitlines()[1].split()) == 150


def test_special_tokens_come_first() -> None:
    tokenizer = train_wordpiece(LINES, 150)
    assert tokenizer.tokens()[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.special_ids == (0, 1, 2, 3, 4)
    assert tokenizer.vocab_size == 150


@pytest.mark.parametrize("lowercase", [True, False])
def test_text_of_its_letters_is_taken_apart_without_loss(lowercase: bool) -> None:
    """Also words it has never seen, since every letter is a token at the start and inside of a word."""
    tokenizer = train_wordpiece(LINES, 150, lowercase=lowercase)
    text = "zoo mining: the fox, does quaint jobs" if lowercase else "The Ünïcode fox: naïve"
    encoding = tokenizer.backend.encode(text, add_special_tokens=False)
    assert tokenizer.unk_id not in encoding.ids
    assert "".join(token.removeprefix("##") for token in encoding.tokens) == text.replace(" ", "")


def test_case_and_accents_fold_as_in_bert_uncased() -> None:
    folded = train_wordpiece(LINES, 150)
    ids = folded.backend.encode("Café NAÏVE", add_special_tokens=False).ids
    assert ids == folded.backend.encode("cafe naive", add_special_tokens=False).ids
    assert not any(token != token.lower() for token in folded.tokens()[5:])
    assert any(token != token.lower() for token in train_wordpiece(LINES, 150, lowercase=False).tokens()[5:])


def test_frequent_words_are_whole_tokens() -> None:
    tokenizer = train_wordpiece(LINES, 150)
    assert tokenizer.backend.encode("the dog", add_special_tokens=False).tokens == ["the", "dog"]


def test_a_small_text_gives_a_small_vocabulary() -> None:
    tokenizer = train_wordpiece(["ab ab"], 1000)
    assert set(tokenizer.tokens()) == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##a", "##b", "ab"}


def test_saving_and_loading_gives_the_same_tokenizer(tmp_path: Path) -> None:
    tokenizer = train_wordpiece(LINES, 150)
    save_tokenizer(tmp_path / "tokenizer", tokenizer)
    again = load_tokenizer(tmp_path / "tokenizer")
    assert (again.sha256, again.tokens()) == (tokenizer.sha256, tokenizer.tokens())
