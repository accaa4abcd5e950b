"""Files to predict in the forms that fine-tuning reads: the rows are those that a loader of the task sees."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from distil_jax.config import TaskSettings
from distil_jax.data.rows import Faults
from distil_jax.errors import UserError
from distil_jax.tasks.data.load import load_task
from distil_jax.tasks.examples import Example, TokenExample
from distil_jax.tasks.kinds.question import QUESTION
from distil_jax.tasks.kinds.sequence import CLASSES
from distil_jax.tasks.kinds.token import TAGS
from distil_jax.tasks.requests import read_requests, reading_of, rows_to_predict, usual_reading

CONLL = "-DOCSTART- -X- O\n\nAda NNP B-PER\nsat VBD O\n\nin IN O\nParis NNP B-LOC\n"
WNUT = "Ada\tB-person\nsat\tO\n\n\tO\nParis\tB-location\n"


def read(
    path: Path, kind: Any, faults: Faults | None = None, labels: tuple[str, ...] = ()
) -> list[tuple[Any, Example]]:
    faults, reading = faults or Faults(), usual_reading(kind)
    rows = rows_to_predict(path, reading, faults, labels)
    return [(one.id, one.example) for one in read_requests(rows, reading, faults, rows.name, rows.unit)]


def words(path: Path, labels: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = read(path, TAGS, labels=labels)
    return [example.words for _, example in found if isinstance(example, TokenExample)]


@pytest.mark.parametrize("name", ["a.conll", "a.txt", "test.annotated", "eng.testb", "a.txt.gz"])
def test_conll_columns_whatever_they_are_called(tmp_path: Path, name: str) -> None:
    data = ("\ufeff" + CONLL).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert words(tmp_path / name) == [("Ada", "sat"), ("in", "Paris")]


ENTITIES = ("O", "B-ORG", "I-ORG")
PARTS = ("NOUN", "VERB", ".", "X")


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("EU NNP I-NP B-ORG\nsat VBD I-VP O\n\nin IN I-PP O\n", ENTITIES, [("EU", "sat"), ("in",)]),
        ("EU I-GPE\nsat O\n\nin O\n", (), [("EU", "sat"), ("in",)]),
        ("\nEU B-ORG\n\nsat O\n", ENTITIES, [("EU",), ("sat",)]),
        ("cats NOUN\nsit VERB\n. .\n", PARTS, [("cats", "sit", ".")]),
        ("EU B-ORG\n" * 1000, ENTITIES, [("EU",) * 1000]),
    ],
)
def test_columns_between_blanks_are_told_by_their_tags(
    tmp_path: Path, text: str, labels: tuple[str, ...], expected: list[tuple[str, ...]]
) -> None:
    (tmp_path / "a.txt").write_text(text)
    assert words(tmp_path / "a.txt", labels) == expected


@pytest.mark.parametrize(
    "lines",
    [
        ["blood type O"],
        ["along the I-95"],
        ["no more E-mail"],
        ["EU B-ORG", "in three words"],
        ["cats sit .", "dogs run ."],
        ["NOUN", "VERB"],
        ["what she said", "what he meant"],
    ],
)
def test_sentences_that_end_like_columns_are_sentences(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n")
    assert words(tmp_path / "a.txt", (*ENTITIES, *PARTS)) == [tuple(line.split()) for line in lines]


def test_text_and_tables_stay_what_they_are_for_a_tagger(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Ada sat\nin Paris\n")
    (tmp_path / "a.tsv").write_text("id\twords\n7\tAda sat\n")
    (tmp_path / "b.tsv").write_text("Ada\tB-PER\nsat\tO\n")
    assert words(tmp_path / "a.txt") == [("Ada", "sat"), ("in", "Paris")]
    assert words(tmp_path / "a.tsv") == words(tmp_path / "b.tsv") == [("Ada", "sat")]


def test_a_bad_line_of_columns_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text(WNUT)
    with pytest.raises(UserError, match=r"a\.conll, line 4: no word"):
        read(tmp_path / "a.conll", TAGS)
    faults = Faults(skip=True)
    assert [identity for identity, _ in read(tmp_path / "a.conll", TAGS, faults)] == [0]
    assert faults.count == 1


def squad(context: str) -> dict[str, Any]:
    answers = [{"text": "Ada", "answer_start": 0}]
    entry = {"id": "q7", "question": "who sat", "answers": answers}
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": [entry]}]}]}


def test_squad_json_gives_the_examples_of_the_loader(tmp_path: Path) -> None:
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(squad("Ada sat")))
    ((identity, example),) = read(path, QUESTION)
    (expected,) = load_task(TaskSettings(name="squad", train=str(path), validation=str(path)), 0).train
    assert identity == "q7"
    assert (example.question, example.context) == (expected.question, expected.context)  # type: ignore[union-attr]
    path.write_text(json.dumps(squad(" ")))
    with pytest.raises(UserError, match=r"dev\.json, data\[0\]\.paragraphs\[0\]\.qas\[0\] \(id q7\): .*'context' is"):
        read(path, QUESTION)


def test_arrays_and_parquet(tmp_path: Path) -> None:
    rows = [{"text": "a", "pair": "b", "id": "x"}, {"text": "c", "pair": "d", "id": "y"}]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read(tmp_path / "a.json", CLASSES) == read(tmp_path / "a.parquet", CLASSES)
    assert [identity for identity, _ in read(tmp_path / "a.parquet", CLASSES)] == ["x", "y"]
    rows[1]["text"] = ""
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet, row 2: .*'text' is empty"):
        read(tmp_path / "a.parquet", CLASSES)


def test_columns_of_the_run_come_first(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"review": ["a"], "text": ["b"]}), tmp_path / "a.parquet")
    reading = reading_of(TaskSettings(name="classification", text="review"), CLASSES)
    rows = rows_to_predict(tmp_path / "a.parquet", reading, Faults())
    ((_, example, _),) = read_requests(rows, reading, Faults(), "a", rows.unit)
    assert example.text == "a"  # type: ignore[union-attr]


def test_published_tables_without_header(tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_text("gj04\t1\t\tThe cat sat.\ngj04\t0\t*\tSat cat the.\n")
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\tThe cat sat.\n")
    reading = reading_of(TaskSettings(name="cola"), CLASSES)

    def texts(name: str) -> list[str]:
        rows = rows_to_predict(tmp_path / name, reading, Faults())
        return [one.example.text for one in read_requests(rows, reading, Faults(), name, rows.unit)]  # type: ignore[union-attr]

    assert texts("dev.tsv") == ["The cat sat.", "Sat cat the."]
    assert texts("test.tsv") == ["The cat sat."]
