"""Changed copies of training texts, on token ids: words masked, words exchanged with their neighbours.

Word masking is that of Tang et al. 2019 ("Distilling Task-Specific Knowledge from BERT into Simple Neural Networks"),
who make a student's training texts with it. Exchanging neighbours moves words away from their tags and answers, so it
suits texts with one label only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from distil_jax.hf import Tokenizer

_SPARE = re.compile(r"[\[<]unused_?\d+[\]>]", re.IGNORECASE)  # of BERT and of SentencePiece vocabularies


def continuation_table(tokenizer: Tokenizer) -> np.ndarray:
    """Whether a token continues the word before it, by id: [V] bool.

    WordPiece marks such tokens. Elsewhere a token continues a word if the tokenizer's own splitting takes it and a
    letter (for digits: a digit) before it for one word; letters right behind a mark count to the mark's word.
    """
    backend, tokens = tokenizer.backend, tokenizer.tokens()
    prefix = getattr(backend.model, "continuing_subword_prefix", None)
    if prefix:
        return np.array([token.startswith(prefix) and len(token) > len(prefix) for token in tokens], bool)

    def continues(token: str) -> bool:
        before = "1" if token[:1].isdigit() else "a"
        text = backend.decoder.decode([before, token])
        if "\ufffd" in text:  # some of the bytes of a character
            return not text[1:2].isspace()
        return len(text) > 1 and len(backend.pre_tokenizer.pre_tokenize_str(text)) == 1

    return np.array([continues(token) for token in tokens], bool)


def word_tokens(tokenizer: Tokenizer, continuation: np.ndarray) -> np.ndarray:
    """Which tokens may stand for a word in an augmented text, by id: [V] bool.

    Continuations, special tokens and spare entries such as `[unused7]` may not.
    """
    allowed = ~continuation
    allowed[[*tokenizer.special_ids]] = False
    allowed[[place for place, token in enumerate(tokenizer.tokens()) if _SPARE.fullmatch(token)]] = False
    return allowed


def augment_ids(
    ids: np.ndarray,
    rng: np.random.Generator,
    *,
    masking: float,
    shuffling: float,
    continuation: np.ndarray,
    special_ids: Sequence[int],
    mask_id: int,
) -> np.ndarray:
    """A changed copy of one tokenised text.

    A word is a token and the continuations after it. Words are exchanged only with a neighbour on the same side of
    every special token, at most once each, and then masked. Special tokens, [UNK] among them, keep their places.

    Args:
        ids: [L] int32.
        rng: the same state gives the same changes.
        masking: expected share of the words of which all tokens become [MASK], 0 to 1.
        shuffling: expected share of the words that change places, 0 to 1 (a little fewer in short texts, where the
            last word more often has no neighbour left).
        continuation: [V] bool from `continuation_table`.
        special_ids: what is left alone.
        mask_id: id of [MASK].

    Returns:
        [L] int32, a new array.
    """
    ids = np.array(ids, np.int32)
    if shuffling > 0 and len(ids):
        ids = ids[_exchanged(ids, rng, shuffling, continuation, special_ids)]
    if masking > 0 and len(ids):
        special, starts = _words(ids, continuation, special_ids)
        chosen = rng.random(np.count_nonzero(starts)) < masking
        numbers = np.cumsum(starts) - 1  # of special tokens too, so these have to be taken out
        hit = np.zeros(len(ids), bool)
        hit[~special] = chosen[numbers[~special]]
        ids[hit] = mask_id
    return ids


def whole_words(ids: np.ndarray, continuation: np.ndarray, special_ids: Sequence[int]) -> np.ndarray:
    """Which tokens of ids [L] are a word each: [L] bool."""
    special, starts = _words(ids, continuation, special_ids)
    continued = np.concatenate([~(starts | special)[1:], [False]])
    return starts & ~continued


def replace_words(
    ids: np.ndarray, places: np.ndarray, candidates: np.ndarray, probability: float, rng: np.random.Generator
) -> np.ndarray:
    """A copy of one tokenised text with other words (Jiao et al. 2020, Algorithm 1): [L] int32.

    Args:
        ids: [L] int32.
        places: [P] int, places of the tokens that may be replaced.
        candidates: [P, K] int32, what each is replaced by: one of K at random.
        probability: of a token to be replaced.
        rng: the same state gives the same copy.
    """
    ids = np.array(ids, np.int32)
    hit = rng.random(len(places)) < probability
    drawn = rng.integers(0, candidates.shape[1], len(places))
    ids[places[hit]] = candidates[hit, drawn[hit]]
    return ids


def _words(ids: np.ndarray, continuation: np.ndarray, special_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """([L] bool special token, [L] bool first token of a word)."""
    special = np.isin(ids, np.asarray(special_ids, np.int64))
    after_special = np.concatenate([[True], special[:-1]])
    # A continuation with no word before it, as in a window that starts inside one, begins a word.
    return special, ~special & (~continuation[ids] | after_special)


def _exchanged(
    ids: np.ndarray,
    rng: np.random.Generator,
    share: float,
    continuation: np.ndarray,
    special_ids: Sequence[int],
) -> np.ndarray:
    """Old place of every token after the exchange: [L] int."""
    special, starts = _words(ids, continuation, special_ids)
    # Every token as one unit: a word from its first token on, or a special token.
    firsts = np.flatnonzero(starts | special)
    is_word = ~special[firsts]
    # Going left to right, a word is exchanged with probability q and takes its neighbour along, so of 1 + q words
    # looked at 2 q change places: q = share / (2 - share).
    draws = (rng.random(len(firsts)) < share / (2 - share)).tolist()
    order = np.arange(len(firsts))
    place = 0
    pairs = (is_word[:-1] & is_word[1:]).tolist()
    while place < len(pairs):
        if pairs[place] and draws[place]:
            order[[place, place + 1]] = place + 1, place
            place += 1
        place += 1
    units = np.split(np.arange(len(ids)), firsts[1:])
    return np.concatenate([units[number] for number in order])
