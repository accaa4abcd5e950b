"""Measures of tagged sentences: how many named entities are found, of all that are there.

Tags of a strict scheme (`tag_schemes.STRICT`) are read as by seqeval's strict mode. Others are read as by seqeval's
default mode, itself that of the CoNLL-2000 script: an I- tag that continues nothing starts an entity. E- and S- tags
(IOBES) are known too, and L-, U- and M- are other names of E-, S- and I-.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from distil_jax.tasks.metrics.tag_schemes import COMMON_MARKS, STRICT, mark_first, strict_spans

_OUTSIDE = ("O", ".")


def entity_measures(
    predicted_tags: Sequence[Sequence[str]], reference_tags: Sequence[Sequence[str]], scheme: str = ""
) -> dict[str, float]:
    """Measures over the entities of all sentences together; an entity is right if type, start and end are.

    Args:
        predicted_tags: a tag a word of each sentence, such as "B-PER".
        reference_tags: the same, as it should be.
        scheme: of the tags, as `tag_scheme` has it; "" reads them leniently.

    Returns:
        entity_f1, entity_precision, entity_recall, tag_accuracy (share of words with the right tag); 0 to 1, and 0
        where a share is 0 / 0.

    Raises:
        ValueError: sentences or words that do not correspond, or an empty tag.
    """
    lengths = [[len(sentence) for sentence in tags] for tags in (predicted_tags, reference_tags)]
    if lengths[0] != lengths[1]:
        raise ValueError("predicted and reference tags have not the same numbers of sentences and words")
    predicted, reference = (set(entity_spans(tags, scheme)) for tags in (predicted_tags, reference_tags))
    both = len(predicted & reference)
    precision, recall = _share(both, len(predicted)), _share(both, len(reference))
    pairs = [
        left == right
        for sentences in zip(predicted_tags, reference_tags, strict=True)
        for left, right in zip(*sentences, strict=True)
    ]
    return {
        "entity_f1": _share(2 * precision * recall, precision + recall),
        "entity_precision": precision,
        "entity_recall": recall,
        "tag_accuracy": _share(sum(pairs), len(pairs)),
    }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def entity_spans(sentences: Sequence[Sequence[str]], scheme: str = "") -> Iterator[tuple[str, int, int]]:
    """(type, first word, last word) of each entity; words are counted over all sentences, plus one between two."""
    if scheme in STRICT:
        yield from strict_spans(sentences, scheme)
        return
    previous, previous_kind, start = "O", "", 0
    for place, tag in enumerate(tag for sentence in sentences for tag in (*sentence, "O")):
        if not tag:
            raise ValueError("a tag is empty")
        tag = mark_first(tag)
        prefix, kind = _prefix(tag), tag[1:].split("-", maxsplit=1)[-1] or "_"
        changes = kind != previous_kind
        if _ends(previous, prefix, changes):
            yield previous_kind, start, place - 1
        if _starts(previous, prefix, changes):
            start = place
        previous, previous_kind = prefix, kind


def _prefix(tag: str) -> str:
    """The first letter, in the letters of IOBES. A tag without a hyphen, such as LOC, has no prefix to translate."""
    return COMMON_MARKS.get(tag[0], tag[0]) if tag[1:2] in ("", "-", "_") else tag[0]


def _ends(previous: str, prefix: str, changes: bool) -> bool:
    """Whether an entity ends before a word with this prefix; `changes`: its type is not that of the word before."""
    if previous in ("E", "S") or (previous in ("B", "I") and prefix in ("B", "S", "O")):
        return True
    return changes and previous not in _OUTSIDE


def _starts(previous: str, prefix: str, changes: bool) -> bool:
    """Whether an entity starts with a word with this prefix."""
    if prefix in ("B", "S") or (prefix in ("I", "E") and previous in ("E", "S", "O")):
        return True
    return changes and prefix not in _OUTSIDE
