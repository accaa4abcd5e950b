"""Where the known tasks' data is: dataset ids, names of the published files and of their columns.

Column names cover the published files and the datasets made of them (Hugging Face, TensorFlow Datasets); which of them
a source has is found out when it is read.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from distil_jax.data.rows import HubId

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
        positions: names of the columns of a file that has no header, in order.
    """

    text: tuple[str, ...]
    pair: tuple[str, ...] = ()
    label: tuple[str, ...] = ("label",)
    id: tuple[str, ...] = ()
    endings: tuple[tuple[str, ...], ...] = ()
    positions: tuple[str, ...] = ()
    indicators: tuple[str, ...] = ()

    def names(self) -> frozenset[str]:
        """All names that matter; other columns need not be kept."""
        endings = [name for names in self.endings for name in names]
        return frozenset((*self.text, *self.pair, *self.label, *self.indicators, *self.id, *endings))


@dataclasses.dataclass(frozen=True)
class SplitPlace:
    """One set of examples: its role and name, its possible file names, its possible names in a dataset."""

    role: Role
    name: str
    files: tuple[str, ...]
    dataset_names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Official:
    """Where one known task's data is.

    Attributes:
        hub: ids, the first that can be opened is used.
        folders: names its folder goes by.
        splits: its sets.
        columns: their columns.
        flawed: rows with too few columns are part of the published files, and left out without asking.
        blank_text: empty texts are part of the published data, and kept.
        iob2: entities may be marked the old way, B- only between neighbours of one type; they are rewritten.
        limits: smallest and largest score of a regression.
    """

    hub: tuple[HubId, ...]
    folders: tuple[str, ...]
    splits: tuple[SplitPlace, ...]
    columns: Columns
    flawed: bool = False
    blank_text: bool = False
    iob2: bool = False
    limits: tuple[float, float] | None = None


# Scripts of old datasets are not run any more; the hub keeps their rows on this branch.
CONVERTED = "refs/convert/parquet"
INDEX = ("idx", "index", "id")
PLAIN_SPLITS = (
    SplitPlace("train", "train", ("train.tsv",), ("train",)),
    SplitPlace("validation", "validation", ("dev.tsv",), ("validation", "dev")),
    SplitPlace("test", "test", ("test.tsv",), ("test",)),
)
MNLI_SPLITS = (
    SplitPlace("train", "train", ("train.tsv",), ("train",)),
    SplitPlace("validation", "matched", ("dev_matched.tsv",), ("validation_matched",)),
    SplitPlace("validation", "mismatched", ("dev_mismatched.tsv",), ("validation_mismatched",)),
    SplitPlace("test", "matched", ("test_matched.tsv",), ("test_matched",)),
    SplitPlace("test", "mismatched", ("test_mismatched.tsv",), ("test_mismatched",)),
)
PACKED = ("", ".xz", ".gz", ".zst", ".bz2")


def _packed(*names: str) -> tuple[str, ...]:
    return tuple(name + ending for name in names for ending in PACKED)


def _splits(train: tuple[str, ...], validation: tuple[str, ...], test: tuple[str, ...]) -> tuple[SplitPlace, ...]:
    files = (train, validation, test)
    return tuple(dataclasses.replace(place, files=names) for place, names in zip(PLAIN_SPLITS, files, strict=True))


def _glue(name: str, folder: str, columns: Columns, **more: bool | tuple[float, float]) -> Official:
    folders = (folder, name, folder.lower())
    splits = MNLI_SPLITS if name == "mnli" else PLAIN_SPLITS
    official = Official((HubId("nyu-mll/glue", name),), folders, splits, columns)
    return dataclasses.replace(official, **more)


def _squad(name: str, version: str, hub: str) -> Official:
    columns = Columns(("question",), ("context",), ("answers",), ("id",))
    splits = _splits(_packed(f"train-v{version}.json"), _packed(f"dev-v{version}.json"), ())
    return Official((HubId(hub),), (name, "squad", "SQuAD"), splits, columns, blank_text=True)


_TWO = Columns(("sentence1",), ("sentence2",), id=INDEX)
_TAGS = Columns(("tokens", "words"), label=("ner_tags", "ner", "tags"), id=("id",))

OFFICIAL: dict[str, Official] = {
    "cola": _glue("cola", "CoLA", Columns(("sentence",), id=INDEX, positions=("source", "label", "mark", "sentence"))),
    "sst2": _glue("sst2", "SST-2", Columns(("sentence",), id=INDEX)),
    "mrpc": _glue(
        "mrpc",
        "MRPC",
        Columns(("sentence1", "#1 String"), ("sentence2", "#2 String"), ("label", "Quality"), ("idx", "index")),
    ),
    "stsb": _glue("stsb", "STS-B", dataclasses.replace(_TWO, label=("label", "score")), limits=(0.0, 5.0)),
    "qqp": _glue(
        "qqp",
        "QQP",
        Columns(("question1",), ("question2",), ("label", "is_duplicate"), INDEX),
        flawed=True,
        blank_text=True,
    ),
    "mnli": _glue(
        "mnli",
        "MNLI",
        Columns(("premise", "sentence1"), ("hypothesis", "sentence2"), ("label", "gold_label"), ("idx", "index")),
    ),
    "qnli": _glue("qnli", "QNLI", Columns(("question",), ("sentence",), id=INDEX)),
    "rte": _glue("rte", "RTE", _TWO),
    "wnli": _glue("wnli", "WNLI", _TWO),
    "ax": Official(
        (HubId("nyu-mll/glue", "ax"),),
        ("diagnostic", "AX", "ax"),
        (SplitPlace("test", "test", ("diagnostic.tsv", "AX.tsv"), ("test",)),),
        Columns(("premise", "sentence1"), ("hypothesis", "sentence2"), id=("idx", "index")),
    ),
    "imdb": Official(
        (HubId("stanfordnlp/imdb"),),
        ("imdb", "IMDb", "aclImdb"),
        _splits(_packed("train.jsonl"), (), _packed("test.jsonl")),
        Columns(("text",), id=("id",)),
    ),
    "squad": _squad("squad", "1.1", "rajpurkar/squad"),
    "squad_v2": _squad("squad_v2", "2.0", "rajpurkar/squad_v2"),
    "wnut17": Official(
        (HubId("leondz/wnut_17"), HubId("leondz/wnut_17", revision=CONVERTED)),
        ("wnut17", "WNUT17", "wnut_17", "ner"),
        _splits(
            ("wnut17train.conll", "train.txt"),
            ("emerging.dev.conll", "dev.txt"),
            ("emerging.test.annotated", "emerging.test.conll", "test.txt"),
        ),
        _TAGS,
    ),
    "conll2003": Official(
        (HubId("lhoestq/conll2003"), HubId("eriktks/conll2003", revision=CONVERTED)),
        ("conll2003", "CoNLL-2003", "CoNLL2003", "conll03", "ner"),
        _splits(("train.txt", "eng.train"), ("valid.txt", "dev.txt", "eng.testa"), ("test.txt", "eng.testb")),
        _TAGS,
        iob2=True,
    ),
    "swag": Official(
        (HubId("allenai/swag", "regular"),),
        ("swag", "SWAG"),
        _splits(
            ("train.csv", "train.jsonl", "train.json"),
            ("val.csv", "val.jsonl", "val.json"),
            ("test.csv", "test.jsonl", "test.json"),
        ),
        Columns(("sent1",), ("sent2",), endings=(("ending0", "ending1", "ending2", "ending3"),)),
    ),
    "codah": Official(
        (HubId("jaredfern/codah", "fold_0"), HubId("jaredfern/codah", "fold_0", CONVERTED)),
        ("codah", "CODAH", "multiple_choice"),
        _splits(
            ("codah_fold0_train.tsv", "train.tsv"),
            ("codah_fold0_dev.tsv", "dev.tsv"),
            ("codah_fold0_test.tsv", "test.tsv"),
        ),
        Columns(
            ("question_propmt", "question_prompt", "prompt"),  # the first is how the dataset spells it
            label=("correct_answer_idx", "label"),
            id=("id",),
            endings=(("candidate_answers",), ("ending0", "ending1", "ending2", "ending3")),
            positions=("category", "prompt", "ending0", "ending1", "ending2", "ending3", "label"),
        ),
    ),
}
