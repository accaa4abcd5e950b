"""What an index of token shards must be like before anything it says is believed.

A corpus folder may come from elsewhere. File names in it would lead out of the folder, types and lengths into memory
that is not there; so all of them are compared with what `prepare` writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

COUNTS = "token_counts.npy"
_SPECIAL = ("pad", "unk", "cls", "sep", "mask")
_LARGEST = 1 << 53  # of any number in it
_NPY_HEADER = 1 << 10  # bytes at most that a .npy file has before its numbers


def shard_names(number: int) -> tuple[str, str]:
    """The file names of a shard: (tokens, documents)."""
    return f"tokens-{number:05d}.bin", f"documents-{number:05d}.bin"


def flaw_of_index(index: Mapping[str, Any]) -> str:
    """What in an index can't be, in a few words; "" for nothing."""
    try:
        return next(_flaws(index), "")
    except (KeyError, TypeError, AttributeError) as error:
        return f"no {error}" if isinstance(error, KeyError) else "of another structure"


def _flaws(index: Mapping[str, Any]) -> Iterator[str]:
    for name in ("rows", "tokens", "sequences", "documents", "sequence_length", "vocab_size"):
        if not _is_count(index[name]):
            yield f"{name} is not a whole number"
    length, vocab_size, dtype = index["sequence_length"], index["vocab_size"], index["dtype"]
    if not 3 <= length <= 1 << 20 or not len(_SPECIAL) <= vocab_size <= 1 << 32:
        yield "sequence_length or vocab_size out of range"
    if dtype not in ("<u2", "<u4") or (dtype == "<u2" and vocab_size > 1 << 16):
        yield "a dtype that does not hold the vocabulary"
    if not isinstance(index["packed"], bool):
        yield "packed is neither true nor false"
    if not isinstance(index["sha256"], str) or not isinstance(index["tokenizer_sha256"], str):
        yield "a sha256 that is no text"
    special = index["special_ids"]
    if set(special) != set(_SPECIAL) or not all(_is_count(n) and n < vocab_size for n in special.values()):
        yield "special_ids are not five ids of the vocabulary"
    counts = index["token_counts"]
    if counts["file"] != COUNTS or not _is_file(counts) or not 0 <= counts["bytes"] - 8 * vocab_size <= _NPY_HEADER:
        yield "token_counts do not fit the vocabulary"
    for number, entry in enumerate(index["shards"]):
        flaw = flaw_of_shard(entry, number, length, int(dtype[-1]))
        if flaw:
            yield f"shard {number}: {flaw}"
    for name in ("rows", "sequences"):
        if sum(entry[name] for entry in index["shards"]) != index[name]:
            yield f"the {name} of the shards do not add up"


def flaw_of_shard(entry: Mapping[str, Any], number: int, sequence_length: int, itemsize: int) -> str:
    """What can't be in an entry {"rows", "sequences", "first_document", "files", ...} of shard `number`; "" if nothing.

    `itemsize` is that of an id on disk, bytes. Raises KeyError, TypeError or AttributeError for another structure.
    """
    if not all(_is_count(entry[name]) for name in ("rows", "sequences", "first_document")):
        return "a number that is none"
    sizes = (entry["rows"] * sequence_length * itemsize, entry["sequences"] * 4)
    for part, name, size in zip(("tokens", "documents"), shard_names(number), sizes, strict=True):
        file = entry["files"][part]
        if file["file"] != name or not _is_file(file):
            return f"its {part} are not in {name}"
        if file["bytes"] != size:
            return f"{name} would not have {size} bytes"
    return ""


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _is_file(entry: Mapping[str, Any]) -> bool:
    return _is_count(entry["bytes"]) and isinstance(entry["sha256"], str)
