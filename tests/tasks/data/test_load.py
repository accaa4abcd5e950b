"""Own data from files: labels found, sets split off, what identifies the data, what is left out."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from distil_jax.errors import UserError
from distil_jax.tasks.examples import Answer, ChoiceExample, SequenceExample

CSV = 'text,label\n"A quick, brown fox",good\n"Two\nlines with ""quotes""",bad\nplain,good\n'
DEV = 'label\ttext\nbad\ta "lone quote\ngood\tdone\r\n'


@pytest.mark.parametrize(
    ("ending", "pack"),
    [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstandard.ZstdCompressor().compress)],
)
def test_csv_is_quoted_and_tsv_is_not(
    tmp_path: Path, ending: str, pack: Callable[[bytes], bytes], write: Any, load: Any
) -> None:
    train = write(tmp_path / f"a.csv{ending}", pack(b"\xef\xbb\xbf" + CSV.encode()))
    data = load("classification", train=train, validation=write(tmp_path / "b.tsv", DEV))
    assert data.labels == ("bad", "good")
    assert data.train == [
        SequenceExample("0", "A quick, brown fox", None, 1),
        SequenceExample("1", 'Two\nlines with "quotes"', None, 0),
        SequenceExample("2", "plain", None, 1),
    ]
    assert [*data.validation["validation"]] == [
        SequenceExample("0", 'a "lone quote', None, 0),
        SequenceExample("1", "done", None, 1),
    ]
    assert data.test == {} and data.notes == ()


def test_columns_can_be_named_and_the_test_set_needs_no_labels(tmp_path: Path, write: Any, load: Any) -> None:
    rows = [{"key": f"k{i}", "a": f"left {i}", "b": f"right {i}", "y": [10, 9, 2][i % 3]} for i in range(6)]
    secret = [{"key": "t", "a": "l", "b": "r"}, {"key": "u", "a": "l", "b": "r", "y": None}]
    data = load(
        "classification",
        train=write(tmp_path / "a.jsonl", rows),
        validation=write(tmp_path / "b.json", json.dumps(rows, indent=1)),
        test=write(tmp_path / "c.jsonl", secret),
        id="key",
        text="a",
        pair="b",
        label="y",
    )
    assert data.labels == ("2", "9", "10")  # by size, not by alphabet
    assert data.train[0] == SequenceExample("k0", "left 0", "right 0", 2)
    assert list(data.validation["validation"]) == list(data.train)
    assert [(e.id, e.label) for e in data.test["test"]] == [("t", None), ("u", None)]


def test_given_labels_set_the_order_and_may_be_written_as_numbers(tmp_path: Path, write: Any, load: Any) -> None:
    train = write(tmp_path / "a.csv", "text,label\na,yes\nb,no\nc,0\nd,1\n")
    data = load("classification", train=train, validation=train, labels=("yes", "no"))
    assert data.labels == ("yes", "no")
    assert [e.label for e in data.train] == [0, 1, 0, 1]


def test_regression_reads_numbers_and_has_no_classes(tmp_path: Path, write: Any, load: Any) -> None:
    train = write(tmp_path / "a.tsv", "text\tlabel\na\t-1\nb\t2.5e0\nc\t 3 \n")
    data = load("regression", train=train, test=train, validation=train)
    assert data.labels == ()
    assert [e.label for e in data.train] == [e.label for e in data.test["test"]] == [-1.0, 2.5, 3.0]


@pytest.mark.parametrize(
    ("written", "names"),
    [
        (["a", "b,c"], None),
        (["a", "b, c|a", ""], ("a", "b, c")),
        (["a", "c, b", ""], ("a", "b", "c")),
        (['["x", "y"]', '["y"]', "[]"], ("x", "y")),
        ([["x", "y"], ["y"], []], ("x", "y")),
    ],
)
def test_sets_of_classes(
    tmp_path: Path,
    written: list[Any],
    names: tuple[str, ...] | None,
    write: Any,
    load: Any,
) -> None:
    train = write(tmp_path / "a.jsonl", [{"text": "t", "label": value} for value in written])
    data = load("multilabel", train=train, validation=train, test=write(tmp_path / "t.jsonl", [{"text": "t"}]))
    names = names or ("a", "b", "c")
    assert data.labels == names
    sets = [[name for name, on in zip(names, e.label, strict=True) if on] for e in data.train]
    wanted = {"a": ["a"], "b,c": ["b", "c"], "b, c|a": ["a", "b, c"], "c, b": ["b", "c"], '["x", "y"]': ["x", "y"]}
    wanted |= {'["y"]': ["y"], "": [], "[]": []}
    assert sets == [value if isinstance(value, list) else wanted[value] for value in written]
    assert data.test["test"][0].label is None


def test_choices_are_given_by_number_or_in_words(tmp_path: Path, write: Any, load: Any) -> None:
    header = "start,mid,one,two,right\n"
    train = write(tmp_path / "a.csv", header + "It rained.,She,got wet,stayed dry,0\nNoon.,He,ate,slept,slept\n")
    settings = {"text": "start", "pair": "mid", "endings": ("one", "two"), "label": "right"}
    data = load("choice", train=train, validation=train, **settings)
    assert data.train == [
        ChoiceExample("0", "It rained.", ("She got wet", "She stayed dry"), 0),
        ChoiceExample("1", "Noon.", ("He ate", "He slept"), 1),
    ]
    rows = [{"text": "p", "endings": ["a", "b", "c"], "label": 2}]
    assert load("choice", test=write(tmp_path / "b.jsonl", rows)).test["test"][0] == ChoiceExample(
        "0", "p", ("a", "b", "c"), 2
    )


def test_questions_from_json_lines(tmp_path: Path, write: Any, load: Any) -> None:
    context = "Ada wrote to Charles in 1843."
    rows = [
        {"id": "x", "question": "Who?", "context": context, "answers": [{"text": "Ada", "answer_start": 0}]},
        {"id": "y", "question": "When?", "context": context, "answers": {"text": ["1843"], "answer_start": [24]}},
        {"id": "z", "question": "Why?", "context": context, "answers": {"text": [], "answer_start": []}},
    ]
    train = write(tmp_path / "a.jsonl", rows)
    data = load("question", train=train, validation=train)
    answers = [e.answers for e in data.train]
    assert answers == [(Answer("Ada", 0),), (Answer("1843", 24),), ()]
    assert data.notes == ("validation: 3 of 3 questions are training examples too",)
    secret = write(tmp_path / "t.jsonl", [{"question": "Who?", "context": context}])
    assert load("question", test=secret).test["test"][0].answers is None


def test_tags_from_json_lines(tmp_path: Path, write: Any, load: Any) -> None:
    rows = [{"tokens": ["Bo", "Li", "ran"], "ner": ["B-PER", "I-PER", "O"]}, {"tokens": ["Rome"], "ner": ["B-LOC"]}]
    train = write(tmp_path / "a.jsonl", rows)
    data = load("tagging", train=train, validation=train, text="tokens", label="ner")
    assert data.labels == ("O", "B-LOC", "B-PER", "I-PER")
    assert [e.tags for e in data.train] == [(2, 3, 0), (1,)]
    assert (data.spec.metrics[0], data.notes) == ("entity_f1", ())


def test_tags_that_mark_no_entities_are_measured_by_accuracy(tmp_path: Path, write: Any, load: Any) -> None:
    train = write(tmp_path / "a.jsonl", [{"words": ["He", "ran"], "tags": ["PRON", "VERB"]}])
    data = load("tagging", train=train, validation=train)
    assert data.spec.metrics == ("tag_accuracy",)
    assert data.notes == ("measured by tag accuracy: the tags PRON, VERB mark no entities",)
    parts = write(tmp_path / "b.jsonl", [{"words": ["He", "ran"], "tags": ["B", "O"]}])  # entities of one kind
    assert load("tagging", train=parts, validation=parts).spec.metrics[0] == "entity_f1"


# What is refused


def test_skipped_rows_are_counted_by_what_is_wrong(tmp_path: Path, write: Any, load: Any) -> None:
    text = b"text,label\nfine,a\n,a\nx,b\nbad\xff,a\nmany,a,b\nnul\0,a\ngood,b\n"
    train = write(tmp_path / "a.csv", text)
    data = load("classification", train=train, validation=train, on_error="skip")
    assert [(e.id, e.text) for e in data.train] == [("0", "fine"), ("2", "x"), ("6", "good")]
    first = data.notes[0]
    assert first.startswith("train: 4 rows skipped (1 x ") and first.count(f", first {train}, line ") == 3
    assert f"1 x not valid UTF-8 (byte 4 of the line), first {train}, line 5" in first
    assert first.endswith("; 1 x other faults)")
    with pytest.raises(UserError, match="line 5: not valid UTF-8"):
        load("classification", train=train)
    only_bad = write(tmp_path / "b.csv", "text,label\n,a\n,b\n")
    with pytest.raises(UserError, match=r"no row that can be used \(first: .*line 2: column 'text' is empty\)"):
        load("classification", train=only_bad, on_error="skip")


OK = "text,label\none,a\ntwo,b\n"
REFUSED: list[tuple[str, str, str, str, str]] = [
    # kind, file name, content, settings as JSON, message
    ("classification", "a.csv", "text,label\none,a\n,b\n", "{}", "a.csv, line 3: column 'text' is empty"),
    ("classification", "a.csv", "text,label\none,a\ntwo,\n", "{}", "line 3: no label"),
    ("classification", "a.csv", "text,label\none,a\ntwo,b,c\n", "{}", "line 3: 3 columns, not 2"),
    ("classification", "a.csv", 'text,label\none,a\n"two,b\nx,a\n', "{}", "line 3: a quote is opened here and never"),
    ("classification", "a.csv", 'text,label\n"o" x,a\n', "{}", "line 2: text follows a closing quote"),
    ("classification", "a.csv", 'text,label\n"o\n\n",a\n,b\n', "{}", "line 5: column 'text' is empty"),
    ("classification", "a.csv", "body,label\none,a\n", "{}", "no column 'text' .found: body, label"),
    ("classification", "a.csv", "text,class\none,a\n", "{}", "no column 'label' .found: text, class"),
    ("classification", "a.csv", OK, '{"pair": "other"}', "no column 'other' .found: text, label"),
    ("classification", "a.csv", OK, '{"id": "key"}', "no column 'key'"),
    ("classification", "a.csv", "text,text\none,a\n", "{}", "line 1: two columns are called 'text'"),
    (
        "classification",
        "a.csv",
        "k,text,label\n1,x,a\n2,y,b\n1,z,a\n",
        '{"id": "k"}',
        "line 4: id '1' is there already .*line 2",
    ),
    ("classification", "a.csv", "text,label\none,a\ntwo,a\n", "{}", "only the class 'a', nothing can be learned"),
    ("classification", "a.csv", OK, '{"labels": ["a", "c"]}', "line 3: label 'b' is unknown .known: a, c"),
    ("classification", "a.csv", "text,label\none,5\n", '{"labels": ["a", "c"]}', "line 2: label 5 is out of range"),
    (
        "classification",
        "a.csv",
        "text,label\nx,postive\n",
        '{"labels": ["negative", "positive"]}',
        "did you mean 'positive'",
    ),
    ("classification", "a.csv", OK, '{"labels": ["a", "a"]}', "names 'a' twice"),
    ("classification", "a.csv", "", "{}", "a.csv: the file is empty"),
    ("classification", "a.csv", "text,label\n", "{}", "holds no row that can be used"),
    ("classification", "a.xlsx", OK, "{}", "the ending .xlsx does not tell the format"),
    ("classification", "a.csv.gz", OK, "{}", "broken .gz file"),
    ("classification", "a.jsonl", '{"text": "x", "label": "a"}\n{"text": "y"\n', "{}", "line 2: not JSON"),
    ("classification", "a.jsonl", '{"text": "x", "label": "a"}\n[1]\n', "{}", "line 2: holds list"),
    ("classification", "a.jsonl", '{"text": "x", "label": NaN}\n', "{}", "line 1: no label"),
    (
        "classification",
        "a.jsonl",
        '{"text": "x", "text": "y"}\n',
        "{}",
        "line 1: not JSON.*the key 'text' is there twice",
    ),
    ("classification", "a.jsonl", '{"text": 3, "label": "a"}\n', "{}", "line 1: column 'text' holds int, not text"),
    (
        "classification",
        "a.jsonl",
        '{"text": "\\ud800", "label": "a"}\n',
        "{}",
        "line 1: column 'text' is not valid Unicode",
    ),
    ("classification", "a.jsonl", '{"text": "a\\u0000", "label": "a"}\n', "{}", "line 1: column 'text' holds a NUL"),
    ("classification", "a.jsonl", '{"text": "x", "label": {"a": 1}}\n', "{}", "line 1: label {'a': 1} is neither"),
    ("classification", "a.jsonl", '{"text": "x", "label": "a"}\n{"label": "b"}\n', "{}", "line 2: no column 'text'"),
    (
        "classification",
        "a.json",
        '[{"text": "x", "label": "a"}, {"text": "", "label": "b"}]',
        "{}",
        "item 2: column 'text' is empty",
    ),
    ("regression", "a.csv", "text,label\nx,1\ny,nan\n", "{}", "line 3: score 'nan' is not a finite number"),
    ("regression", "a.csv", "text,label\nx,1e999\n", "{}", "line 2: .*not a finite number"),
    ("regression", "a.csv", "text;label\nx;0,29\n", "{}", "line 2: score '0,29' is not a number.*a point"),
    ("regression", "a.csv", "text,label\nx,1_000\n", "{}", "line 2: score '1_000' is not a finite number"),
    ("regression", "a.csv", "text,label\nx,high\n", "{}", "line 2: score 'high' is not a number"),
    ("regression", "a.csv", "text,label\nx,\n", "{}", "line 2: no score"),
    (
        "multilabel",
        "a.jsonl",
        '{"text": "x", "label": ["a", null]}\n{"text": "x", "label": ["a"]}',
        "{}",
        "line 1: no label",
    ),
    ("multilabel", "a.csv", "text,label\nx,[a\ny,b\n", "{}", r"line 2: label holds '\[a'"),
    ("multilabel", "a.csv", 'text,label\nx,"a,d"\n', '{"labels": ["a", "b"]}', "line 2: label 'd' is unknown"),
    ("tagging", "a.jsonl", '{"words": ["a", "b"], "tags": ["O"]}', "{}", "line 1: 2 words but 1 tags"),
    ("tagging", "a.jsonl", '{"words": "a b", "tags": ["O"]}', "{}", "line 1: column 'words' holds str"),
    (
        "tagging",
        "a.jsonl",
        '{"words": ["a", " "], "tags": ["O", "O"]}',
        "{}",
        "line 1: word 2 of the sentence is empty",
    ),
    (
        "tagging",
        "a.jsonl",
        '{"words": [], "tags": []}\n{"words": ["a"], "tags": ["O"]}',
        "{}",
        "line 1: a sentence without words",
    ),
    ("tagging", "a.jsonl", '{"words": ["a"], "tags": ["X"]}', '{"labels": ["O"]}', "line 1: tag 'X' is unknown"),
    ("tagging", "a.csv", "a,O\nb,O\n", "{}", "no column 'words' or 'tokens'.*found: a, O"),
    (
        "choice",
        "a.csv",
        "text,a,b,label\nx,p,q,3\n",
        '{"endings": ["a", "b"]}',
        "line 2: label 3 is out of range: there are 2",
    ),
    (
        "choice",
        "a.csv",
        "text,a,b,label\nx,y,z,w\n",
        '{"endings": ["a", "b"]}',
        "line 2: label 'w' is none of the endings",
    ),
    ("choice", "a.csv", "text,a,label\nx,y,0\n", '{"endings": ["a", "b"]}', "no column 'b'"),
    ("choice", "a.jsonl", '{"text": "x", "endings": ["one"], "label": 0}', "{}", "line 1: .*no list of two or more"),
    (
        "question",
        "a.jsonl",
        '{"question": "q", "context": "c", "answers": [{"text": "d", "answer_start": 0}]}',
        "{}",
        "line 1: answer 'd' is not in the context at answer_start = 0 .the context does not hold it",
    ),
    (
        "question",
        "a.jsonl",
        '{"question": "q", "context": "abc", "answers": [{"text": "bc", "answer_start": 0}]}',
        "{}",
        "line 1: answer 'bc' is not in the context at answer_start = 0 .it is at 1",
    ),
    (
        "question",
        "a.jsonl",
        '{"question": "q", "context": "abc", "answers": {"text": ["a"], "answer_start": []}}',
        "{}",
        "line 1: 1 texts of answers but 0 starts",
    ),
    (
        "question",
        "a.jsonl",
        '{"question": " ", "context": "abc", "answers": []}',
        "{}",
        "line 1: column 'question' is empty",
    ),
    ("question", "a.jsonl", '{"question": "q", "context": "abc"}', "{}", "no column 'answers'"),
]


@pytest.mark.parametrize(("kind", "name", "text", "settings", "message"), REFUSED)
def test_bad_input_is_refused_in_one_line(
    tmp_path: Path,
    kind: str,
    name: str,
    text: str,
    settings: str,
    message: str,
    write: Any,
    load: Any,
) -> None:
    path = write(tmp_path / name, text)
    chosen = {key: tuple(v) if isinstance(v, list) else v for key, v in json.loads(settings).items()}
    with pytest.raises(UserError, match=message) as error:
        load(kind, train=path, validation=path, **chosen)
    assert "\n" not in str(error.value)


def test_a_label_only_in_validation_is_unknown(tmp_path: Path, write: Any, load: Any) -> None:
    train, other = write(tmp_path / "a.csv", OK), write(tmp_path / "b.csv", "text,label\none,a\ntwo,zz\n")
    with pytest.raises(UserError, match=r"b\.csv, line 3: label 'zz' is unknown \(known: a, b\)"):
        load("classification", train=train, validation=other)


def test_settings_that_do_not_belong_to_the_task(tmp_path: Path, write: Any, load: Any) -> None:
    train = write(tmp_path / "a.csv", OK)
    with pytest.raises(UserError, match=r"task\.pair is for own data"):
        load("sst2", train=train, pair="x")
    with pytest.raises(UserError, match=r"task\.labels is for own data"):
        load("sst2", train=train, labels=("x", "y"))
    with pytest.raises(UserError, match="regression has no classes"):
        load("regression", train=train, labels=("x", "y"))
    with pytest.raises(UserError, match=r"task\.train is not set"):
        load("classification")
    with pytest.raises(UserError, match="no such file|cannot be read"):
        load("classification", train=str(tmp_path / "missing.csv"))
    with pytest.raises(UserError, match="is a folder"):
        load("classification", train=str(tmp_path))


def test_an_unclosed_quote_costs_its_own_row_only(tmp_path: Path, write: Any, load: Any) -> None:
    rows = ["text,label", "one,a", '"two,b', "three,b", '"four",a']
    train = write(tmp_path / "a.csv", "\n".join(rows) + "\n")
    data = load("classification", train=train, validation=train, on_error="skip")
    assert [e.text for e in data.train] == ["one", "three", "four"]


def test_a_text_longer_than_the_csv_module_likes_is_read(tmp_path: Path, write: Any, load: Any) -> None:
    long = "word " * 100_000
    train = write(tmp_path / "a.csv", f"text,label\n{long},a\nb,b\n")
    data = load("classification", train=train, validation=train)
    assert data.train[0].text == long


def test_too_few_examples_to_set_some_aside(tmp_path: Path, write: Any, load: Any) -> None:
    with pytest.raises(UserError, match=r"2 training examples are too few.*task\.validation"):
        load("classification", train=write(tmp_path / "a.csv", OK))
