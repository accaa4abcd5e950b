"""What the columns of a row are called, and what a set of rows is for."""

from __future__ import annotations

import dataclasses
from typing import Literal

Role = Literal["train", "validation", "test"]


@dataclasses.dataclass(frozen=True)
class Columns:
    """What the columns are called: alternatives, best first; () where there is no such column.

    Attributes:
        text: text, prompt, words or question.
        pair: second text, start of every ending, or context.
        label: class, score, tags or answers.
        id: what identifies a row; its number (from 0) where no such column is found.
        endings: alternatives, each the columns of all endings, or one column that holds a list of them.
        indicators: a column of 0 and 1 for each class of sets of classes.
        soft: a column of probabilities for each class.
        positions: names of the columns of a file that has no header, in order.
    """

    text: tuple[str, ...]
    pair: tuple[str, ...] = ()
    label: tuple[str, ...] = ("label",)
    id: tuple[str, ...] = ()
    endings: tuple[tuple[str, ...], ...] = ()
    positions: tuple[str, ...] = ()
    indicators: tuple[str, ...] = ()
    soft: tuple[str, ...] = ()

    def names(self) -> frozenset[str]:
        """All names that matter; other columns need not be kept."""
        endings = [name for names in self.endings for name in names]
        return frozenset((*self.text, *self.pair, *self.label, *self.indicators, *self.soft, *self.id, *endings))
