"""How rows are read: what the user says, and what is known about the columns that are wanted."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Literal

from distil_jax.data.rows.lines import LINE_LIMIT

Format = Literal["csv", "tsv", "jsonl", "json", "parquet", "text", "conll", "conllu"]
FORMATS: tuple[Format, ...] = ("csv", "tsv", "jsonl", "json", "parquet", "text", "conll", "conllu")


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How a file, pipe or dataset is read; the defaults find everything out.

    Attributes:
        format: what the file is; "": its ending, or its first lines, show it.
        separator: of the columns of a table; "": found in its first lines.
        wanted: names of the text column, best first; a first line that holds one of them is a header.
        keep: columns that matter; None: all.
        positions: names of the columns of a table that has no header.
        flawed: rows of a table with a wrong number of cells are left out and counted separately.
        tagged: words with tags are wanted, which may stand in columns, a word a line.
        labelled: their tags are wanted too: a file of plain sentences is of no use.
        words, tags: columns of words and of tags, by name or by number from 1; "": found by what they hold.
        tag_names: tags that are known, by which columns are recognised.
        max_line_bytes: the longest line.
    """

    format: Format | Literal[""] = ""
    separator: str = ""
    wanted: tuple[str, ...] = ()
    keep: Collection[str] | None = None
    positions: tuple[str, ...] = ()
    flawed: bool = False
    tagged: bool = False
    labelled: bool = False
    words: str = ""
    tags: str = ""
    tag_names: Collection[str] = ()
    max_line_bytes: int = LINE_LIMIT
