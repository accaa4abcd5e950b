"""A tokenizer with fewer tokens, which gives a text that uses only those the same tokens.

WordPiece takes the longest token that fits, BPE joins in a fixed order, Unigram takes the likeliest pieces. Without a
token that a text does not use, each comes to the same tokens, under these conditions: BPE keeps what a token is joined
of, Unigram keeps its least likely token, whose score decides what an unknown character costs. A word that has become
known in parts, because a longer token that led nowhere is gone, is the exception: such a text has the unknown token.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distil_jax.errors import UserError
from distil_jax.hf.tokenizer import Tokenizer, load_tokenizer, write_tokenizer

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "\u2581"  # what SentencePiece writes for a blank


class Vocabulary:
    """What of a tokenizer's vocabulary has to stay.

    Attributes:
        required: ids of special and added tokens, of single characters and bytes, and Unigram's least likely token.
        parts: of BPE, id -> ids of the tokens that it is joined of, by any rule.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Reads the vocabulary. Raises UserError for a kind of model whose tokens cannot be left out."""
        self._raw = json.loads(tokenizer.backend.to_str())
        model = self._raw["model"]
        if model["type"] not in ("WordPiece", "BPE", "Unigram"):
            raise UserError(f"a {model['type']} tokenizer cannot be trimmed; WordPiece, BPE and Unigram ones can")
        self._tokenizer = tokenizer
        self._ids = _ids_of(model)
        added = {token["id"] for token in self._raw["added_tokens"]}
        single = {number for token, number in self._ids.items() if _is_single(token, model)}
        self.required = frozenset({*added, *single, *tokenizer.special_ids, *_least_likely(model)})
        self.parts = _parts(model, self._ids)

    def needed(self, number: int) -> set[int]:
        """A token and all that it is joined of."""
        found: set[int] = set()
        left = [number]
        while left:
            if (one := left.pop()) not in found:
                found.add(one)
                left += self.parts.get(one, ())
        return found

    def trimmed(self, kept: Sequence[int], family: str) -> Tokenizer:
        """The tokenizer of the tokens `kept`, ascending, which hold what is needed; its ids are their places in `kept`.

        Raises:
            UserError: tokens stand in an order that cannot be kept.
        """
        new = {number: place for place, number in enumerate(kept)}
        raw = json.loads(json.dumps(self._raw))
        _trim_model(raw["model"], new)
        for token in raw["added_tokens"]:
            token["id"] = new[token["id"]]
        _renumber(raw["post_processor"], new)
        with tempfile.TemporaryDirectory(prefix="tokenizer-") as name:
            folder = Path(name)
            write_tokenizer(folder, self._tokenizer, family=family, max_length=self._tokenizer.source.model_max_length)
            (folder / "vocab.txt").unlink(missing_ok=True)  # tokenizer.json holds everything
            (folder / "tokenizer.json").write_text(json.dumps(raw, ensure_ascii=False), encoding="utf-8")
            found = load_tokenizer(folder)
        wrong = [n for n in kept if found.backend.token_to_id(self._tokenizer.backend.id_to_token(n) or "") != new[n]]
        if wrong:
            raise UserError(f"the tokenizer numbers its tokens in a way that cannot be kept (token {wrong[0]})")
        return found


def _ids_of(model: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        return vocabulary
    return {token: number for number, (token, _) in enumerate(vocabulary)}


def _is_single(token: str, model: Mapping[str, Any]) -> bool:
    """Whether it is one character (of a byte-level vocabulary: one byte), in a word or at its start."""
    bare = token.removeprefix(model.get("continuing_subword_prefix") or "")
    bare = bare.removesuffix(model.get("end_of_word_suffix") or "").removeprefix(_SPACE)
    return len(bare) <= 1 or (bool(model.get("byte_fallback")) and bool(_BYTE.fullmatch(token)))


def _least_likely(model: Mapping[str, Any]) -> set[int]:
    if model["type"] != "Unigram":
        return set()
    return {min(range(len(model["vocab"])), key=lambda number: model["vocab"][number][1])}


def _parts(model: Mapping[str, Any], ids: Mapping[str, int]) -> dict[int, set[int]]:
    parts: dict[int, set[int]] = {}
    for merge in model.get("merges", ()):
        first, second = merge
        parts.setdefault(ids[_joined(first, second, model)], set()).update((ids[first], ids[second]))
    return parts


def _joined(first: str, second: str, model: Mapping[str, Any]) -> str:
    return first + second.removeprefix(model.get("continuing_subword_prefix") or "")


def _trim_model(model: dict[str, Any], new: Mapping[int, int]) -> None:
    """Leave out of a tokenizer.json's model what has no new id, in place."""
    ids = _ids_of(model)
    kept = {token: new[number] for token, number in ids.items() if number in new}
    if model["type"] == "Unigram":
        model["vocab"] = [entry for number, entry in enumerate(model["vocab"]) if number in new]
        model["unk_id"] = None if model["unk_id"] is None else new[model["unk_id"]]
        return
    model["vocab"] = kept
    if "merges" in model:
        model["merges"] = [
            [one, two] for one, two in model["merges"] if {one, two, _joined(one, two, model)} <= kept.keys()
        ]


def _renumber(processor: Any, new: Mapping[int, int]) -> None:
    """Put new ids into a post-processor, in place."""
    if processor is None:
        return
    for part in processor.get("processors", ()):
        _renumber(part, new)
    for token in processor.get("special_tokens", {}).values():
        token["ids"] = [new[number] for number in token["ids"]]
    for name in ("sep", "cls"):
        if name in processor:
            processor[name][1] = new[processor[name][1]]
