"""Where a data set is published, and in which form."""

from __future__ import annotations

import dataclasses

from distil_jax.data.rows import HubId
from distil_jax.tasks.data.columns import Columns, Role

_PACKED = ("", ".xz", ".gz", ".zst", ".bz2")


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
        blank_text: empty texts are part of the published data, and kept.
        iob2: entities may be marked as in IOB1, and are rewritten to IOB2.
        answered: every question has an answer.
        text_files: the folder may hold a file a text, in a folder a class ("train/pos").
        limits: smallest and largest score of a regression.
    """

    hub: tuple[HubId, ...]
    folders: tuple[str, ...]
    columns: Columns
    splits: tuple[SplitPlace, ...] = PLAIN_SPLITS
    flawed: bool = False
    blank_text: bool = False
    iob2: bool = False
    answered: bool = False
    text_files: bool = False
    limits: tuple[float, float] | None = None
