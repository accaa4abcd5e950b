"""Tables as own data: separators and quotes are recognised and said; finetune, evaluate and predict read the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest

from distil_jax.config import TaskSettings
from distil_jax.errors import UserError


def test_a_separator_is_recognised_and_said(tmp_path: Path, write: Any, load: Any) -> None:
    train = write(tmp_path / "a.csv", 'text;label\n"one; two";a\nthree, four;b\n')
    data = load("classification", train=train, validation=train)
    assert [example.text for example in data.train] == ["one; two", "three, four"]
    assert any("';'" in line for line in data.report.lines())


def test_a_separator_can_be_named(tmp_path: Path, write: Any, load: Any) -> None:
    train = write(tmp_path / "a.csv", "text:label\none:a\ntwo:b\n")
    with pytest.raises(UserError, match=r"a\.csv: no column 'text' .found: text:label"):
        load("classification", train=train, validation=train)
    assert len(load("classification", train=train, validation=train, separator=":").train) == 2
    with pytest.raises(UserError, match=r"task\.separator"):
        TaskSettings(separator="::")


def test_a_tsv_of_pandas(tmp_path: Path, load: Any) -> None:
    texts = ['He said "no"', "a\ttab", "two\nlines", "plain"]
    pandas.DataFrame({"text": texts, "label": list("abab")}).to_csv(tmp_path / "a.tsv", sep="\t", index=False)
    train = str(tmp_path / "a.tsv")
    data = load("classification", train=train, validation=train)
    assert [example.text for example in data.train] == texts
    assert any("quotes enclose" in line for line in data.report.lines())
    official = {"sentence": texts, "label": [0, 1, 0, 1]}
    pandas.DataFrame(official).to_csv(tmp_path / "train.tsv", sep="\t", index=False)
    pandas.DataFrame(official).to_csv(tmp_path / "dev.tsv", sep="\t", index=False)
    assert [example.text for example in load("sst2", source=str(tmp_path)).train] == texts


def test_values_stay_as_they_are_written(tmp_path: Path, write: Any, load: Any) -> None:
    train = write(tmp_path / "a.csv", "text,label,id\n2020-01-01,001,01\n1e5,002,1\n")
    data = load("classification", train=train, validation=train, id="id")
    assert [(example.id, example.text) for example in data.train] == [("01", "2020-01-01"), ("1", "1e5")]


def test_a_text_file_that_is_a_table(tmp_path: Path, write: Any, load: Any) -> None:
    train = write(tmp_path / "train.txt", "label\ttext\na\tone\nb\ttwo\n")
    assert [example.text for example in load("classification", train=train, validation=train).train] == ["one", "two"]


def test_a_word_a_row(tmp_path: Path, write: Any, load: Any) -> None:
    train = write(tmp_path / "ner.csv", "sentence_id,word,tag\n1,Ann,B-PER\n1,ran,O\n2,So,O\n")
    data = load("tagging", train=train, validation=train)
    assert [example.words for example in data.train] == [("Ann", "ran"), ("So",)]


@pytest.mark.parametrize("dump", [json.dumps, repr])
def test_lists_in_cells_of_tables(tmp_path: Path, load: Any, dump: Any) -> None:
    rows = {"words": [dump(["Ann", "ran"]), dump(["[So]"])], "tags": [dump(["B-PER", "O"]), dump(["O"])]}
    pandas.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    data = load("tagging", train=str(tmp_path / "a.csv"), validation=str(tmp_path / "a.csv"))
    assert [example.words for example in data.train] == [("Ann", "ran"), ("[So]",)]
