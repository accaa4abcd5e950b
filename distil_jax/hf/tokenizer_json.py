"""A tokenizer.json reduced to what a WordPiece tokenizer needs, before the library that runs it sees it.

The library builds whatever the file describes: regular expressions that take hours on one line, replacements that make
gigabytes out of a kilobyte, templates that make its Rust code panic. Only components that take linear time and add
nothing are let through; padding, truncation, the post-processor and the decoder are made anew by the caller anyway.
"""

from __future__ import annotations

import json
from typing import Any

from distil_jax.errors import UserError, one_line

NORMALIZERS = {
    "BertNormalizer": ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"),
    "Strip": ("strip_left", "strip_right"),
    **dict.fromkeys(("Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"), ()),
}
PRE_TOKENIZERS = {
    "Punctuation": ("behavior",),
    "Digits": ("individual_digits",),
    **dict.fromkeys(("BertPreTokenizer", "Whitespace", "WhitespaceSplit"), ()),
}
_ADDED = ("id", "content", "single_word", "lstrip", "rstrip", "normalized", "special")
_MOST_PARTS = 16  # of a sequence of components
_MOST_CONTAINERS = 1 << 16  # objects and lists in the file; an added token is one
_LONGEST_TOKEN = 1000  # characters
_LONGEST_WORD = 1000  # characters; WordPiece takes quadratic time over a word


def plain_tokenizer(data: bytes, where: str) -> str:
    """The tokenizer.json in `data` with nothing but a WordPiece model, added tokens and known components, as JSON.

    Raises:
        UserError: not JSON, another kind of model, or a component that is not known to be harmless.
    """
    # A bound on what the file can make of memory: "[" is at least one byte a container, inside of texts or not.
    if data.count(b"[") + data.count(b"{") > _MOST_CONTAINERS:
        raise UserError(f"{where}: more than {_MOST_CONTAINERS} objects and lists, so no tokenizer.json")
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a tokenizer.json ({one_line(error)})") from error
    model = raw.get("model") if isinstance(raw, dict) else None
    if not isinstance(model, dict):
        raise UserError(f"{where}: not a tokenizer.json (it has no model)")
    added = raw.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise UserError(f"{where}: added_tokens is not a list of objects")
    plain = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{key: token[key] for key in _ADDED if key in token} for token in added],
        "normalizer": _component(raw.get("normalizer"), NORMALIZERS, "normalizers", f"{where}: normalizer"),
        "pre_tokenizer": _component(
            raw.get("pre_tokenizer"), PRE_TOKENIZERS, "pretokenizers", f"{where}: pre_tokenizer"
        ),
        "post_processor": None,
        "decoder": {"type": "WordPiece", "prefix": model.get("continuing_subword_prefix", "##"), "cleanup": True},
        "model": _word_piece(model, where),
    }
    for token in plain["added_tokens"]:
        content = token.get("content")
        if not isinstance(content, str) or not 0 < len(content) <= _LONGEST_TOKEN:
            raise UserError(f"{where}: an added token that is empty, far too long or no text")
    return json.dumps(plain)


def _word_piece(model: dict[str, Any], where: str) -> dict[str, Any]:
    kind = model.get("type", "WordPiece")
    if kind != "WordPiece":
        raise UserError(f"{where}: a {one_line(kind, 40)} tokenizer; BERT and DistilBERT need WordPiece")
    vocabulary, prefix = model.get("vocab"), model.get("continuing_subword_prefix", "##")
    if not isinstance(vocabulary, dict) or not all(type(n) is int and 0 <= n < 1 << 24 for n in vocabulary.values()):
        raise UserError(f"{where}: the model's vocab is not an object of tokens and their ids")
    longest = model.get("max_input_chars_per_word", 100)
    if type(longest) is not int or not 1 <= longest <= _LONGEST_WORD:
        raise UserError(
            f"{where}: max_input_chars_per_word = {one_line(longest, 40)}, expected a whole number from 1 to "
            f"{_LONGEST_WORD}"
        )
    unknown = model.get("unk_token", "[UNK]")
    if any(not isinstance(text, str) or len(text) > _LONGEST_TOKEN for text in (prefix, unknown)):
        raise UserError(f"{where}: unk_token or continuing_subword_prefix is no short text")
    if unknown not in vocabulary:
        raise UserError(f"{where}: unk_token {one_line(unknown, 40)!r} is not in the model's vocabulary")
    if max(map(len, vocabulary), default=0) > _LONGEST_TOKEN:
        raise UserError(f"{where}: a token of more than {_LONGEST_TOKEN} characters")
    return {
        "type": "WordPiece",
        "unk_token": unknown,
        "continuing_subword_prefix": prefix,
        "max_input_chars_per_word": longest,
        "vocab": vocabulary,
    }


def _component(raw: Any, known: dict[str, tuple[str, ...]], parts: str, where: str, depth: int = 0) -> Any:
    """A component with its known settings alone; a sequence of them part by part."""
    if raw is None:
        return None
    kind = raw.get("type") if isinstance(raw, dict) else None
    if kind == "Sequence" and depth < 2:
        items = raw.get(parts)
        if not isinstance(items, list) or len(items) > _MOST_PARTS:
            raise UserError(f"{where}: a sequence without a list of at most {_MOST_PARTS} {parts}")
        return {"type": kind, parts: [_component(item, known, parts, where, depth + 1) for item in items]}
    if not isinstance(kind, str) or kind not in known:
        raise UserError(
            f"{where}: {one_line(kind, 40)} is not supported (it could make reading a text take for ever); "
            f"known: {', '.join(known)}"
        )
    return {"type": kind} | {key: raw[key] for key in known[kind] if key in raw}
