"""Tags of the old form of CoNLL-2003 in the form that all measures read."""

from __future__ import annotations

from collections.abc import Sequence

from distil_jax.data.rows import BadRowError


def to_iob2(tags: Sequence[str]) -> list[str]:
    """Tags in which every entity begins with B-, from those where B- is used between neighbours of one type only.

    Tags that are already like that stay as they are.
    """
    found: list[str] = []
    for i, tag in enumerate(tags):
        if not isinstance(tag, str):
            raise BadRowError(f"tag {tag!r} is not a name")
        prefix, _, kind = tag.partition("-")
        inside = i > 0 and tags[i - 1] in (f"B-{kind}", f"I-{kind}")
        found.append(f"B-{kind}" if prefix == "I" and not inside else tag)
    return found
