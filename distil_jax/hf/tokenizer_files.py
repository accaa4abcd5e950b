"""The files of a tokenizer, checked before the library that runs them sees them.

The `tokenizers` library builds whatever a tokenizer.json describes: regular expressions that take hours on one line,
replacements that turn a kilobyte into gigabytes. transformers passes every field of a tokenizer_config.json to a class
and opens the paths among them. So only files of known names, sizes and components get through.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from distil_jax.errors import UserError, one_line

VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")  # at least one of them has to be there
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
FILES = (*VOCABULARIES, "merges.txt", *SETTINGS)
MOST_TOKENS = 1 << 20  # an id is below
_LARGEST = 16 << 20  # bytes of a vocabulary; half a million tokens have 10 MB
_LARGEST_SETTINGS = 2 << 20  # bytes of another file
_MOST_CONTAINERS = 1 << 19  # objects and lists in a file: a bound on what it makes of memory
_MOST_SPECIAL = 1 << 10  # transformers compares each with every added token
_MOST_PARTS = 16  # of a sequence of components
_LONGEST_TOKEN = 1000  # characters
_LONGEST_WORD = 1000  # characters; WordPiece takes quadratic time over a word
_LONGEST_REPLACEMENT = 64  # bytes of what a normalisation table puts in for a character; NFKC needs 33
# Components that take linear time and add at most a constant to a text.
_LINEAR = {
    *("BertNormalizer", "Strip", "StripAccents", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt"),
    *("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "Punctuation", "Digits", "ByteLevel", "Metaspace"),
    *("BertProcessing", "RobertaProcessing", "TemplateProcessing"),
}
# Regular expressions of the families' own tokenizers; an arbitrary one may take exponential time.
_PATTERNS = (
    " {2,}",
    r"\s+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
)
_TOKEN_FIELDS = ("id", "content", "single_word", "lstrip", "rstrip", "normalized", "special", "__type")
# Fields of a tokenizer_config.json that bring a vocabulary, an object or a file from elsewhere.
_FOREIGN = ("vocab", "merges", "init_inputs", "tokenizer_object", "gguf_file", "post_processor", "fast_tokenizer_files")


def checked_files(path: Path) -> dict[str, bytes]:
    """The contents of a tokenizer's files by name: of a folder, or of a single tokenizer.json or vocabulary.

    A tokenizer.json comes without padding and truncation, a tokenizer_config.json without paths.

    Raises:
        UserError: no vocabulary, a file that is damaged or too large, a component that may take unbounded time.
    """
    if path.is_file():
        found = {"tokenizer.json" if path.suffix == ".json" else "vocab.txt": path}
    else:
        found = {name: path / name for name in FILES if (path / name).is_file()}
    if not any(name in found for name in VOCABULARIES):
        raise UserError(f"{path}: no tokenizer; looked for {', '.join(VOCABULARIES)}")
    contents = {
        name: _bytes_of(file, _LARGEST_SETTINGS if name in SETTINGS else _LARGEST) for name, file in found.items()
    }
    for name in set(contents) - {"vocab.txt", "merges.txt"}:
        raw = json_object(contents[name], str(found[name]))
        if name == "tokenizer.json":
            _check_json(raw, str(found[name]))
            raw |= {"padding": None, "truncation": None}
        elif name in ("vocab.json", "added_tokens.json"):
            _check_vocabulary(raw, str(found[name]))
        else:
            raw = _checked_settings(raw, str(found[name]))
        contents[name] = json.dumps(raw).encode()
    if "vocab.txt" in contents:
        _check_lines(contents["vocab.txt"], str(found["vocab.txt"]))
    return contents


def _bytes_of(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path}: not readable ({one_line(error)})") from error
    if len(data) > limit:
        raise UserError(f"{path}: more than {limit} bytes, too large for a tokenizer")
    return data


def json_object(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in a file's content. Raises UserError for anything else."""
    # "[" is at least one byte a container, inside of texts or not.
    if data.count(b"[") + data.count(b"{") > _MOST_CONTAINERS:
        raise UserError(f"{where}: more than {_MOST_CONTAINERS} objects and lists, too many for a tokenizer")
    try:
        raw = json.loads(data, object_hook=_known_token)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not readable as JSON ({one_line(error)})") from error
    if not isinstance(raw, dict):
        raise UserError(f"{where}: a JSON {type(raw).__name__}, expected an object")
    return raw


def _known_token(raw: dict[str, Any]) -> dict[str, Any]:
    """An added token without unknown fields, which the library prints; any other object as it is."""
    is_token = isinstance(raw.get("content"), str) and "type" not in raw
    return {name: value for name, value in raw.items() if name in _TOKEN_FIELDS} if is_token else raw


def _checked_settings(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """The settings without paths and private fields, all of which transformers replaces by its own."""
    for name in _FOREIGN:
        if raw.get(name) and raw[name] != ["tokenizer.json"]:
            raise UserError(f"{where}: the field {name} is not supported; save the tokenizer as a tokenizer.json")
    auto_map = raw.get("auto_map")
    if auto_map and (not isinstance(auto_map, dict) or "AutoTokenizer" in auto_map):
        raise UserError(
            f"{where}: its tokenizer is code of the folder ({one_line(auto_map, 80)}), which is never run; save it as "
            "a tokenizer.json, or use a model with a tokenizer class of transformers"
        )
    for name, value in [("the file", raw), *raw.items()]:
        if isinstance(value, list | dict) and name != "added_tokens_decoder" and len(value) > _MOST_SPECIAL:
            raise UserError(f"{where}: {one_line(name, 40)} has more than {_MOST_SPECIAL} entries")
    dropped = (*_FOREIGN, "auto_map", "tokenizer_padding", "tokenizer_truncation", "chat_template")
    return {
        name: value
        for name, value in raw.items()
        if name not in dropped and not name.endswith("_file") and not name.startswith("_")
    }


def _check_lines(data: bytes, where: str) -> None:
    if data.count(b"\n") > MOST_TOKENS:
        raise UserError(f"{where}: more than {MOST_TOKENS} lines, too many for a vocabulary")
    try:
        longest = max(map(len, data.decode("utf-8").split("\n")))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not readable as UTF-8 text, one token a line ({one_line(error)})") from error
    if longest > _LONGEST_TOKEN:
        raise UserError(f"{where}: a token of {longest} characters, at most {_LONGEST_TOKEN} are taken")


def _check_json(raw: dict[str, Any], where: str) -> None:
    model, added = raw.get("model"), raw.get("added_tokens") or []
    if not isinstance(model, dict):
        raise UserError(f"{where}: not a tokenizer.json (it has no model)")
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise UserError(f"{where}: added_tokens is not a list of objects")
    raw["added_tokens"] = added
    _check_vocabulary(model.get("vocab"), where)
    _check_vocabulary({token.get("content"): token.get("id") for token in added}, where)
    longest = model.get("max_input_chars_per_word", 100)
    if type(longest) is not int or not 1 <= longest <= _LONGEST_WORD:
        raise UserError(
            f"{where}: max_input_chars_per_word = {one_line(longest, 40)}, expected a whole number from 1 to "
            f"{_LONGEST_WORD}"
        )
    if model.get("dropout"):
        raise UserError(f"{where}: model.dropout = {one_line(model['dropout'], 40)} gives a text other ids every time")
    for name in ("normalizer", "pre_tokenizer", "post_processor"):
        _check_component(raw.get(name), f"{where}: {name}")


def _check_vocabulary(raw: Any, where: str) -> None:
    """Raises UserError unless `raw` is {token: id}, or [[token, score], ...] as Unigram models have it."""
    if isinstance(raw, list) and all(isinstance(item, list) and len(item) == 2 for item in raw):
        raw = {token: number for number, (token, _) in enumerate(raw) if isinstance(token, str)}
    if not isinstance(raw, dict) or not all(type(n) is int and 0 <= n < MOST_TOKENS for n in raw.values()):
        raise UserError(f"{where}: a vocabulary has to be an object of tokens and ids from 0 to {MOST_TOKENS - 1}")
    if not all(isinstance(token, str) and len(token) <= _LONGEST_TOKEN for token in raw):
        raise UserError(f"{where}: a token that is no text of at most {_LONGEST_TOKEN} characters")


def _check_component(raw: Any, where: str, depth: int = 0) -> None:
    """Raises UserError unless a component is known to take linear time; of a sequence, part by part."""
    if raw is None:
        return
    kind = raw.get("type") if isinstance(raw, dict) else None
    if kind == "Sequence" and depth < 2:
        parts = next((raw[name] for name in ("normalizers", "pretokenizers", "processors") if name in raw), None)
        if not isinstance(parts, list) or len(parts) > _MOST_PARTS:
            raise UserError(f"{where}: a sequence without a list of at most {_MOST_PARTS} parts")
        for part in parts:
            _check_component(part, where, depth + 1)
    elif not (
        (isinstance(kind, str) and kind in _LINEAR)
        or (kind in ("Replace", "Split") and _is_harmless(raw))
        or (kind == "Precompiled" and _is_short_table(raw))
    ):
        raise UserError(
            f"{where}: {one_line(kind, 40)} with these settings is not supported, since it may take unbounded time or "
            "memory"
        )


def _is_harmless(raw: dict[str, Any]) -> bool:
    """Whether a Replace or Split has a known pattern, and puts in no more than it takes away."""
    pattern, content = raw.get("pattern"), raw.get("content", "")
    if not isinstance(pattern, dict) or len(pattern) != 1 or not isinstance(content, str):
        return False
    ((kind, text),) = pattern.items()
    if kind == "Regex":
        return text in _PATTERNS and len(content) <= 1
    return kind == "String" and isinstance(text, str) and len(content) <= len(text) and 0 < len(text) <= _LONGEST_TOKEN


def _is_short_table(raw: dict[str, Any]) -> bool:
    """Whether SentencePiece's table of replacements has short ones only: a trie, then texts that end with NUL."""
    try:
        table = base64.b64decode(raw.get("precompiled_charsmap") or "", validate=True)
    except (ValueError, TypeError):
        return False
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return len(table) > 4 and max(map(len, texts.split(b"\0"))) <= _LONGEST_REPLACEMENT
