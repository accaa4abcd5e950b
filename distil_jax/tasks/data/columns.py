"""What the columns of a row are called, and where a data set is published, in which form."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from distil_jax.data.rows import HubId

Role = Literal["train", "validation", "test"]
_PACKED = ("", ".xz", ".gz", ".zst", ".bz2")


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


@dataclasses.dataclass(frozen=True)
class SplitPlace:
    """One set of examples: its role and name, its possible file names, its possible names in a dataset."""

    role: Role
    name: str
    files: tuple[str, ...]
    dataset_names: tuple[str, ...]


PLAIN_SPLITS = (
    SplitPlace("train", "train", ("train.tsv",), ("train",)),
    SplitPlace("validation", "validation", ("dev.tsv",), ("validation", "dev")),
    SplitPlace("test", "test", ("test.tsv",), ("test",)),
)


def packed(*names: str) -> tuple[str, ...]:
    """The file names, plain and compressed."""
    return tuple(name + ending for name in names for ending in _PACKED)


def split_places(train: tuple[str, ...], validation: tuple[str, ...], test: tuple[str, ...]) -> tuple[SplitPlace, ...]:
    """One set a role, in files of these names."""
    files = (train, validation, test)
    return tuple(dataclasses.replace(place, files=names) for place, names in zip(PLAIN_SPLITS, files, strict=True))


@dataclasses.dataclass(frozen=True)
class Published:
    """Where one data set is, and what is known about its files.

    Column names cover the published files and the datasets made of them (Hugging Face, TensorFlow Datasets); which of
    them a source has is found out when it is read.

    Attributes:
        hub: ids, the first that can be opened is used.
        folders: names its folder goes by.
        columns: of its rows.
        splits: its sets.
        flawed: rows with too few columns are part of the published files, and left out without asking.
        text_files: the folder may hold a file a text, in a folder a class ("train/pos").
        rules: fields of `convert.ExampleRules` that its rows need.
    """

    hub: tuple[HubId, ...]
    folders: tuple[str, ...]
    columns: Columns
    splits: tuple[SplitPlace, ...] = PLAIN_SPLITS
    flawed: bool = False
    text_files: bool = False
    rules: Mapping[str, Any] = dataclasses.field(default_factory=dict)
