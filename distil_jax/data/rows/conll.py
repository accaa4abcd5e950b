"""Sentences in columns: a word a line, its tag in another column, a blank line between sentences.

CoNLL-2003 and its many relatives, GermEval's numbered words with outer and inner tags, and CoNLL-U. Which columns hold
words and tags is recognised by what they hold, or named by the user, and always said.
"""

from __future__ import annotations

import ast
import collections
import contextlib
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from distil_jax.data.rows.json_rows import parse_json
from distil_jax.data.rows.lines import Line
from distil_jax.data.rows.options import ReadOptions
from distil_jax.data.rows.table import Faults, Row, RowStream, place_of, some
from distil_jax.errors import UserError

WORDS, TAGS = "words", "tags"
DOCUMENT_START = "-DOCSTART-"
CONLLU_COLUMNS = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
OUTSIDE = "O"  # the tag of what is in no entity
_SAMPLE = 2000  # lines by which columns are recognised
_MANY = 50  # rows from which on the number of different values says something
_SPAN_TAG = re.compile(r"[BILESMU](-|$)|[BILESMU]_\S|O$|[A-Za-z0-9_.]+-[BILESMU]$")
_ID = re.compile(r"\d+(?:[-.]\d+)?$")
_PART_OF_SPEECH = re.compile(
    "ADJ|ADP|ADV|AUX|CCONJ|CONJ|DET|INTJ|NOUN|NUM|PART|PRON|PROPN|PUNCT|SCONJ|SYM|VERB|X|CC|CD|DT|EX|FW|IN|JJ[RS]?|LS|"
    r"MD|NNP?S?|PDT|POS|PRP\$?|RB[RS]?|RP|TO|UH|VB[DGNPZ]?|WDT|WP\$?|WRB|-[LR]RB-|\W+"
)
_PHRASES = frozenset(["ADJP", "ADVP", "CONJP", "INTJ", "LST", "NP", "PP", "PRT", "SBAR", "UCP", "VP"])
# Of the same columns in JSON Lines; those of a file without names are found.
_USUAL_NAMES = frozenset(["", WORDS, TAGS, "word", "tag", "text", "tokens", "label", "labels", "ner_tags"])


def open_conll(
    lines: Iterator[Line], stream: RowStream, options: ReadOptions, faults: Faults, *, universal: bool = False
) -> None:
    """Lets `stream.rows` read sentences with `words` and, where there are tags, `tags`.

    Columns are separated by tabs, or by blanks where a line has no tab. Lines that start a document and comments before
    a sentence are left out, and in CoNLL-U words of several parts ("1-2") and words that are not written ("8.1").

    Args:
        lines: of the file.
        stream: is filled.
        options: `words`, `tags` and `tag_names` matter.
        faults: what is done about a row with another number of columns than the first, or without word or tag; its
            sentence is left out as a whole.
        universal: the file is CoNLL-U, whatever it looks like.

    Raises:
        UserError: no sentence, a column that is not there, or columns that can be read either way.
    """
    sample = [*itertools.islice(lines, _SAMPLE)]
    rows = _word_rows(sample)
    widths = collections.Counter(map(len, rows))
    if not any(line is None or line.strip() for _, line in sample):
        stream.columns = []
        return
    if not widths:
        raise UserError(f"{stream.name}: holds no sentence; check the file")
    width = max(widths, key=lambda one: widths[one])  # damaged lines may come first; of equal numbers, the first
    whole = [fields for fields in rows if len(fields) == width]
    found = _Columns(stream.name, whole, _names(sample, whole, universal=universal), options)
    stream.columns = [WORDS] if found.tags < 0 else [WORDS, TAGS]
    stream.columns_taken = {WORDS: found.title(found.words)}
    if found.tags >= 0:
        stream.columns_taken[TAGS] = found.title(found.tags)
    if width > 2 or found.swapped:
        stream.note(", ".join(f"{name} from {place}" for name, place in stream.columns_taken.items()) + found.more)
    stream.rows = _sentences(itertools.chain(sample, lines), found, stream, faults)


def looks_like_span_tag(tag: str) -> bool:
    """Whether a tag marks a part of an entity, or none: B-PER, I, O, PER-B."""
    return _SPAN_TAG.match(tag) is not None


def _word_rows(sample: Sequence[Line]) -> list[list[str]]:
    """The fields of lines that hold a word for sure: none that could be comments before a sentence."""
    rows: list[list[str]] = []
    at_start = True
    for _, line in sample:
        fields = _fields(line or "")
        if not any(fields):
            at_start = at_start or line is not None
        elif fields[0] != DOCUMENT_START and not (at_start and fields[0].startswith("#")):
            rows.append(fields)
            at_start = False
    # A file of "#" alone is one of words.
    return rows or [fields for _, line in sample if len(fields := _fields(line or "")) > 1 and fields[0] == "#"]


def _fields(line: str) -> list[str]:
    line = line.removesuffix("\r")
    return [field.strip() for field in line.split("\t")] if "\t" in line else line.split()


def _names(sample: Sequence[Line], rows: Sequence[list[str]], *, universal: bool) -> Sequence[str]:
    """Names of the columns of CoNLL-U, and of CoNLL-U Plus, which spells them out; () where there are none."""
    for _, line in sample:
        if line and line.startswith("# global.columns"):
            return tuple(line.partition("=")[2].split())
    known = universal or (len(rows[0]) == len(CONLLU_COLUMNS) and _are_numbered(rows))
    return CONLLU_COLUMNS if known else ()


def _are_numbered(rows: Sequence[list[str]]) -> bool:
    first = rows[0][0]
    return len(rows[0]) > 1 and first in ("0", "1", "1-2") and all(_ID.match(fields[0]) for fields in rows)


class _Columns:
    """Which columns hold what.

    Attributes:
        width: number of columns.
        words, tags: their numbers, from 0; tags is -1 where there are none.
        known: tags that were seen in the first lines.
        numbered: the first column counts the words.
        swapped: tags stand in front of words.
        more: what else a user has to know, for the note.
    """

    def __init__(self, name: str, rows: list[list[str]], names: Sequence[str], options: ReadOptions) -> None:
        self.name, self.width, self.names, self.options = name, len(rows[0]), names, options
        self.more, self.swapped = "", False
        self.numbered = names[:1] == ("ID",) or _are_numbered(rows)
        self.columns = [*zip(*rows, strict=True)]
        given_words, given_tags = self._given(options.words), self._given(options.tags)
        self.tags = self._found_tags() if given_tags is None else given_tags
        usual = self.names.index("FORM") if "FORM" in self.names else int(self.numbered)
        self.words = usual if given_words is None else given_words
        if given_tags is None and given_words is None and self.width > 1 and not self.numbered:
            self._swap()
        if self.tags == self.words:
            self.tags = -1
        self.known = {*self.columns[self.tags]} if self.tags >= 0 else set()

    def title(self, column: int) -> str:
        """What a column is called: "column 2 (FORM)"."""
        return f"column {column + 1}" + (f" ({self.names[column]})" if column < len(self.names) else "")

    def _given(self, name: str) -> int | None:
        """The column that the user names, by name or number; None where nothing is named."""
        lower = [known.lower() for known in self.names]
        if name.lower() in lower:
            return lower.index(name.lower())
        if name.lower() in _USUAL_NAMES:
            return None
        if re.fullmatch(r"-?\d+", name) and int(name) and -self.width <= int(name) <= self.width:
            return int(name) - 1 if int(name) > 0 else self.width + int(name)
        known = f"{some(self.names)}, or a number from 1 to {self.width}" if self.names else f"1 to {self.width}"
        raise UserError(f"{self.name}: no column {name!r} (its columns: {known}); name one of them")

    def _found_tags(self) -> int:
        """The last column that can hold tags; of nested tags the outermost. Raises UserError where two kinds can."""
        first = 1 + self.numbered
        if first >= self.width:
            return -1
        if "UPOS" in self.names:
            return self._first_filled("UPOS", "XPOS")
        types = [_types(column) for column in self.columns]
        able = [i for i in range(first, self.width) if types[i] is not None or _is_varied(self.columns[i])]
        last = able[-1] if able else self.width - 1
        spans = [i for i in range(first, last) if types[i] and not (types[i] or set()) <= _PHRASES]
        if types[last] is None and spans:
            found = ", ".join(f"{self.title(i)}: {some(sorted({*self.columns[i]}), 4)}" for i in (spans[-1], last))
            raise UserError(f"{self.name}: two columns can hold the tags ({found}); name one with task.label")
        outer = last
        while outer > first and self._nests(types[outer - 1], types[last]):
            outer -= 1
        if outer < last:
            self.more = f"; {self.title(last)} holds inner tags of the same kind, task.label takes another column"
        return outer

    def _first_filled(self, *names: str) -> int:
        """The first of the columns that is not blank ("_") in every row."""
        for name in names:
            if name in self.names and {*self.columns[self.names.index(name)]} != {"_"}:
                return self.names.index(name)
        raise UserError(f"{self.name}: its columns {' and '.join(names)} are blank; name one of them with task.label")

    def _nests(self, outer: set[str] | None, inner: set[str] | None) -> bool:
        """Whether a column holds tags of entities around those of another one."""
        if outer is None or inner is None or not outer:
            return False
        return bool(outer & inner) or (self.numbered and not outer <= _PHRASES)

    def _swap(self) -> None:
        """Recognises tags in front of words, or asks."""
        first, last = self.columns[0], self.columns[-1]
        if self._are_tags(first) and not self._are_tags(last) and not {*last} <= {OUTSIDE}:
            self.words, self.tags, self.swapped = self.width - 1, 0, True
        elif len(first) >= _MANY and 4 * len({*first}) < len({*last}):
            raise UserError(
                f"{self.name}: {len({*first})} different values in column 1, {len({*last})} in column {self.width}: "
                "which one holds the words? Name both columns by number, with task.text and task.label"
            )

    def _are_tags(self, column: Sequence[str]) -> bool:
        values = {*column}
        spans = all(map(looks_like_span_tag, values)) and bool(values - {OUTSIDE})
        parts = all(map(_PART_OF_SPEECH.fullmatch, values))
        return spans or parts or values <= {*self.options.tag_names}


def _is_varied(column: Sequence[str]) -> bool:
    """Whether a column can hold tags of any kind: not one value in every row, no numbers, not mostly unique values."""
    values = {*column}
    number = all(re.fullmatch(r"[-+]?[\d.,]+(?:[eE][-+]?\d+)?", value) for value in values)
    unique = len(column) >= _MANY and len(values) > len(column) // 2
    return not number and not unique and (len(values) > 1 or len(column) < 3)


def _types(column: Sequence[str]) -> set[str] | None:
    """Types of the entities that a column of tags marks; None where it marks none."""
    values = {*column}
    if not all(map(looks_like_span_tag, values)):
        return None
    return {value[2:] for value in values if value != OUTSIDE}


# Sentences


def _sentences(lines: Iterator[Line], found: _Columns, stream: RowStream, faults: Faults) -> Iterator[Row]:
    number, start = 0, 0
    block: list[list[str] | None] = []
    for line_number, line in itertools.chain(lines, [(0, "")]):
        if line is not None and not line.strip():
            if block:
                if row := _sentence(Row(start, number, {}), block, found):
                    yield row
                number += 1
            block = []
            continue
        fields = None if line is None else _fields(line)
        if fields and line is not None and _is_comment(line, fields, found, at_start=not block):
            continue
        start = start if block else line_number
        if fields and (what := _fault(fields, found)):
            faults(place_of(stream.name, "line", line_number), what)
            fields = None
        if fields is None or not found.numbered or fields[0].isdecimal():
            block.append(fields)
        if fields and found.tags >= 0:
            found.known.add(fields[found.tags])


def _is_comment(line: str, fields: Sequence[str], found: _Columns, *, at_start: bool) -> bool:
    """Whether a line is none of a sentence: it starts a document, or is a comment and not the word "#"."""
    if fields[0] == DOCUMENT_START:
        return True
    if not line.startswith("#"):
        return False
    if found.numbered:
        return True
    if len(fields) != found.width:
        return at_start
    if found.tags < 0 or not at_start:
        return False
    tag = fields[found.tags]
    return tag not in found.known and not (looks_like_span_tag(tag) and all(map(looks_like_span_tag, found.known)))


def _fault(fields: Sequence[str], found: _Columns) -> str:
    if len(fields) != found.width:
        return f"{len(fields)} columns, not {found.width}"
    if not fields[found.words]:
        return "no word"
    return "" if found.tags < 0 or fields[found.tags] else "no tag"


def _sentence(row: Row, block: Sequence[list[str] | None], found: _Columns) -> Row | None:
    fields = [item for item in block if item is not None]
    if len(fields) < len(block):
        return None
    row.values[WORDS] = [item[found.words] for item in fields]
    if found.tags >= 0:
        row.values[TAGS] = [item[found.tags] for item in fields]
    return row


# Tables


_GROUP_NAMES = ("sentence #", "sentence_id", "sentence id", "sentence_idx", "sent_id")
_WORD_NAMES = ("word", "token", "form", "words", "tokens")
_TAG_NAMES = ("tag", "tags", "label", "labels", "ner", "ner_tag", "ner_tags")


def group_words(stream: RowStream, options: ReadOptions) -> None:
    """Makes sentences of a table with a word a row and a column that numbers the sentences.

    A sentence begins where the number changes; a blank cell repeats the one above it. In other tables, cells with a
    list as JSON or Python writes it become lists.
    """
    columns = {name.lower(): name for name in reversed(stream.columns or ())}

    def find(*names: str) -> str:
        return next((columns[name.lower()] for name in names if name.lower() in columns), "")

    group, word, tag = find(*_GROUP_NAMES), find(options.words, *_WORD_NAMES), find(options.tags, *_TAG_NAMES)
    if not group or not word:
        rows = stream.rows
        stream.rows = (row._replace(values={name: _listed(cell) for name, cell in row.values.items()}) for row in rows)
        return
    stream.columns_taken = {WORDS: f"column {word!r}", **({TAGS: f"column {tag!r}"} if tag else {})}
    stream.columns = [*stream.columns_taken]
    taken = ", ".join(f"{name} from {place}" for name, place in stream.columns_taken.items())
    stream.note(f"a word a row: {taken}, sentences by column {group!r}")
    stream.rows = _grouped(stream.rows, group, word, tag)


def _listed(cell: str) -> Any:
    if cell.startswith("[") and cell.endswith("]"):
        for read in (parse_json, ast.literal_eval):
            with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                return read(cell)
    return cell


def _grouped(rows: Iterator[Row], group: str, word: str, tag: str) -> Iterator[Row]:
    current: Row | None = None
    name, number = "", 0
    for row in rows:
        if current is None or row.values[group] not in ("", name):
            if current is not None:
                yield current
            current = Row(row.place, number, {WORDS: [], **({TAGS: []} if tag else {})})
            name, number = row.values[group], number + 1
        current.values[WORDS].append(row.values[word])
        if tag:
            current.values[TAGS].append(row.values[tag])
    if current is not None:
        yield current
