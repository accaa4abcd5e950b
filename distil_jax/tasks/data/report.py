"""What was read for a task: shown before training, so that a wrong column or spelling is seen in time."""

from __future__ import annotations

import collections
import dataclasses
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from distil_jax.data.rows import some
from distil_jax.tasks.data.labels import PLACEHOLDERS

_MOST_CLASSES = 30  # shown with their counts
_RARE = 2  # rows; a class of so few is more often a typing mistake than a class


@dataclasses.dataclass(frozen=True)
class SetReport:
    """What was read for one set.

    Attributes:
        role, name: what the set is for, and its name among those ("matched").
        source: file, or dataset and split.
        rows: rows read, those that were left out included.
        left_out: rows that cannot be used.
        columns: names of the columns by what they are taken for.
        labels: how many examples have each label (tags: words), in the order of the classes.
        examples: how many were made of the rows.
        notes: what the reader recognised in the file.
    """

    role: str
    name: str
    source: str
    rows: int
    left_out: int
    columns: Mapping[str, str]
    labels: Mapping[str, int]
    examples: int
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The set in words: "train", "validation (matched)"."""
        return self.role if self.name in (self.role, "test") else f"{self.role} ({self.name})"

    def lines(self) -> list[str]:
        """Rows, columns and labels in words."""
        left_out = f", {self.left_out:,} left out" if self.left_out else ""
        columns = ", ".join(f"{what} = {name!r}" for what, name in self.columns.items())
        lines = [f"{self.title}: {self.rows:,} rows read{left_out} from {self.source}; columns: {columns}"]
        lines += [f"  {note}" for note in self.notes]
        shown = [f"{label} {count:,}" for label, count in [*self.labels.items()][:_MOST_CLASSES]]
        more = f" and {len(self.labels) - _MOST_CLASSES} more" if len(self.labels) > _MOST_CLASSES else ""
        return [*lines, f"  labels: {', '.join(shown)}{more}"] if shown else lines


@dataclasses.dataclass(frozen=True)
class DataReport:
    """What was read for a task.

    Attributes:
        task: its title.
        sets: of its sets, in order.
        classes: names of the classes or tags, in the order of their numbers.
        metrics: names of the measures.
        scheme: of tags which mark entities.
        warnings: what may be a mistake in the data.
        notes: what was decided, and what was left out, set aside or drawn.
    """

    task: str = ""
    sets: tuple[SetReport, ...] = ()
    classes: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    scheme: str = ""
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """All of it, for people."""
        if not self.task:
            return []
        lines = [line for one in self.sets for line in one.lines()]
        scheme = f" of tags in the scheme {self.scheme}" if self.scheme else ""
        lines.append(f"measured by {', '.join(self.metrics)}{scheme}")
        return [f"task {self.task}", *lines, *self.notes, *(f"warning: {text}" for text in self.warnings)]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return dataclasses.asdict(self)


def encoded_lines(sets: Mapping[str, Sequence[np.ndarray]], unknown_id: int) -> list[str]:
    """The share of unknown tokens of each set, for people.

    Args:
        sets: token ids of the rows of each set; negative ones fill up.
        unknown_id: of [UNK].
    """
    lines = []
    for name, rows in sets.items():
        tokens = sum(int((row >= 0).sum()) for row in rows)
        unknown = sum(int((row == unknown_id).sum()) for row in rows)
        share = 100 * unknown / max(tokens, 1)
        lines.append(f"{name}: {len(rows):,} rows of {tokens:,} tokens, {share:.2g} % of them unknown")
    return lines


def label_counts(labels: Iterable[Iterable[Any] | None], classes: Sequence[str]) -> dict[str, int]:
    """How many examples have each label.

    Args:
        labels: what each example's label counts as (`TaskKind.counted`); None where it is not known.
        classes: names of classes or tags.

    Returns:
        Counts by class or by what else is counted; of scores their number, with their range.
    """
    found: collections.Counter[Any] = collections.Counter()
    for label in labels:
        found.update(("unknown",) if label is None else label)
    scores = [score for score in found.elements() if isinstance(score, float)]
    if scores:
        return {f"scores from {min(scores):g} to {max(scores):g}, mean {np.mean(scores):.3g}:": len(scores)}
    named = {name: found.pop(number, 0) for number, name in enumerate(classes)}
    named = named if any(named.values()) else {}
    return named | {str(key): count for key, count in sorted(found.items(), key=str)}


def class_warnings(classes: Sequence[str], first: SetReport) -> tuple[str, ...]:
    """What may be a mistake in the classes, by their counts in the first set: capitals, rare ones, placeholders."""
    labels = {name: first.labels.get(name, 0) for name in classes}
    folded: dict[str, list[str]] = collections.defaultdict(list)
    for name in labels:
        folded["".join(unicodedata.normalize("NFKC", name).casefold().split())].append(name)
    found = []
    for names in folded.values():
        if len(names) > 1:
            counts = ", ".join(f"{name!r} ({labels[name]:,})" for name in names)
            what = "differ only in capitals, blanks or forms of characters"
            found.append(f"the classes {counts} {what}; each is a class of its own")
    for name, count in labels.items():
        if name.casefold() in PLACEHOLDERS:
            found.append(f"the class {name!r} ({count:,}) looks like a missing label; it is a class like any other")
    rare = [f"{name!r} ({count})" for name, count in labels.items() if 0 < count <= _RARE]
    if rare and first.role == "train":
        found.append(f"classes that are there once or twice, perhaps by mistake: {some(rare)}")
    return tuple(found)
