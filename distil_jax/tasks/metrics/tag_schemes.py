"""Schemes in which tags mark entities: recognised from the tags, and read as seqeval reads them.

IOB1, IOB2 and IOE1 are read by `entities.entity_spans` (seqeval's default mode), as the CoNLL scripts do. IOE2, IOBES,
BMES and BILOU are read here (seqeval's strict mode): an entity that is not well formed is none.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence

TAG = re.compile(r"(?P<mark>[BIESLUM])(?:[-_](?P<type>.+))?")
_MARK_LAST = re.compile(r"(?P<type>.+)[-_](?P<mark>[BIESLUM])")
STRICT = ("IOE2", "IOBES", "BMES", "BILOU")
UNKNOWN = "mixed"  # tags mark entities, but follow no scheme
# Letters of IOBES for those of BILOU and BMES.
COMMON_MARKS = {"L": "E", "U": "S", "M": "I"}
_LETTERS = {"IOB": "BIO", "IOE": "IEO", "IOBES": "IOBES", "BMES": "BMESO", "BILOU": "BILOU"}


@functools.lru_cache(maxsize=1 << 16)
def mark_first(tag: str) -> str:
    """The tag with its mark in front: "B-PER" for "PER-B"; any other tag as it is."""
    match = None if TAG.fullmatch(tag) else _MARK_LAST.fullmatch(tag)
    return tag if match is None else f"{match['mark']}-{match['type']}"


def mark_entities(tags: Iterable[str]) -> bool:
    """Whether tags say where entities begin and end (B-PER, I-PER, O), unlike parts of speech (NOUN, VERB)."""
    found = {mark_first(tag) for tag in tags if tag != "O"}
    if not all(TAG.fullmatch(tag) for tag in found):
        return False
    return any(len(tag) > 1 for tag in found) or bool(_families(found))


def _families(tags: Iterable[str]) -> list[str]:
    """Schemes whose letters are enough for these tags."""
    letters = {tag[0] for tag in tags} | {"O"}
    return [name for name, known in _LETTERS.items() if letters <= {*known}]


def tag_scheme(sentences: Sequence[Sequence[str]], labels: Iterable[str] = ()) -> str:
    """The scheme that tags follow: IOB1, IOB2, IOE1, IOE2, IOBES, BMES, BILOU, or "mixed"; "" if none is marked.

    Args:
        sentences: a tag a word of each sentence, right ones.
        labels: tags that are known besides.
    """
    from distil_jax.tasks.metrics.entities import entity_spans

    sentences = [[*map(mark_first, sentence)] for sentence in sentences]
    tags = {tag for sentence in sentences for tag in sentence} | {*map(mark_first, labels)}
    if not tags or not mark_entities(tags):
        return ""
    family = next(iter(_families(tags)), UNKNOWN)
    if family == "IOB":
        return _iob(sentences)
    if family == UNKNOWN:
        return UNKNOWN
    name = "IOE2" if family == "IOE" else family
    if {*strict_spans(sentences, name)} == {*entity_spans(sentences)}:
        return name
    return "IOE1" if family == "IOE" else UNKNOWN


def _iob(sentences: Sequence[Sequence[str]]) -> str:
    """IOB2 where every entity begins with B-; IOB1 where B- stands between neighbours of one type only."""
    opened_by_i = opened_by_b = False
    for sentence in sentences:
        for before, tag in zip(("O", *sentence), sentence, strict=False):
            same_type = before != "O" and before[1:] == tag[1:]
            opened_by_i |= tag[0] == "I" and not same_type
            opened_by_b |= tag[0] == "B" and not same_type
    if not opened_by_i:
        return "IOB2"
    return UNKNOWN if opened_by_b else "IOB1"


def to_iob2(tags: Sequence[str]) -> list[str]:
    """The tags in IOB2, from IOB1; those that are in IOB2 stay as they are."""
    found: list[str] = []
    for before, tag in zip(("O", *tags), tags, strict=False):
        mark, _, kind = tag.partition("-")
        found.append(f"B-{kind}" if mark == "I" and before not in (f"B-{kind}", f"I-{kind}") else tag)
    return found


def strict_spans(sentences: Iterable[Sequence[str]], scheme: str) -> Iterator[tuple[str, int, int]]:
    """(type, first word, last word) of each well-formed entity; words count over all sentences, plus one between two.

    Args:
        sentences: a tag a word of each.
        scheme: one of `STRICT`.
    """
    first = 0
    for sentence in sentences:
        marked = map(mark_first, sentence)
        marks = [(COMMON_MARKS.get(tag[0], tag[0]), tag[1:].strip("-") or "_") for tag in marked]
        previous, start = ("O", "_"), -1
        for place, current in enumerate([*marks, ("O", "_")]):
            same = current[1] == previous[1]
            if start >= 0 and not (same and _continues(previous[0], current[0], scheme)):
                if previous[0] in "ES":
                    yield previous[1], first + start, first + place - 1
                start = -1
            if start < 0 and _starts(previous[0], current[0], same, scheme):
                start = place
            previous = current
        first += len(sentence) + 1


def _continues(previous: str, current: str, scheme: str) -> bool:
    return current in "IE" and previous in ("I" if scheme == "IOE2" else "BI")


def _starts(previous: str, current: str, same: bool, scheme: str) -> bool:
    if scheme == "IOE2":
        return current in "IE" and (previous in "OE" or not same)
    return current in "BS"
