"""Known tasks in their published files: columns, labels, file names; folders of own data. Samples in our own words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from distil_jax.config import TaskSettings
from distil_jax.errors import UserError
from distil_jax.tasks.data.load import load_task
from distil_jax.tasks.examples import ChoiceExample, Example, SequenceExample


def fill(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


def load(name: str, source: Path | str = "", **settings: Any) -> Any:
    return load_task(TaskSettings(name=name, source=str(source), **settings), 0)


def short(examples: Any) -> list[tuple[Any, ...]]:
    return [(e.id, e.text, e.pair, e.label) for e in examples]


def tabs(*rows: str, end: str = "\n") -> str:
    return end.join(row.replace("|", "\t") for row in rows) + end


def test_cola_has_no_header_but_in_its_test_file(tmp_path: Path) -> None:
    train = tabs('me07|1||He "said so.', "me07|0|*|Said so he.")
    source = fill(
        tmp_path, {"CoLA/train.tsv": train, "CoLA/dev.tsv": train, "CoLA/test.tsv": tabs("index|sentence", "7|So.")}
    )
    data = load("cola", source)
    assert short(data.train) == [("0", 'He "said so.', None, 1), ("1", "Said so he.", None, 0)]
    assert short(data.test["test"]) == [("7", "So.", None, None)]
    assert load("cola", source / "CoLA").sha256 == data.sha256


def test_mrpc_with_byte_order_mark_windows_lines_and_stray_quotes(tmp_path: Path) -> None:
    header = "Quality|#1 ID|#2 ID|#1 String|#2 String"
    train = "\ufeff" + tabs(header, '1|12|13|" Fine , " he said .|It is fine .', '0|14|15|No " end|Other', end="\r\n")
    test = "\ufeff" + tabs("index|#1 ID|#2 ID|#1 String|#2 String", "0|1|2|a|b")
    data = load("mrpc", fill(tmp_path, {"train.tsv": train, "dev.tsv": train, "test.tsv": test}))
    assert short(data.train) == [("0", '" Fine , " he said .', "It is fine .", 1), ("1", 'No " end', "Other", 0)]
    assert short(data.test["test"]) == [("0", "a", "b", None)]


def test_stsb_scores(tmp_path: Path) -> None:
    header = "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2|score"
    row = "0|news|x|2012|1|none|none|A cat.|A dog.|"
    data = load(
        "stsb",
        fill(tmp_path, {"STS-B/train.tsv": tabs(header, row + "2.250"), "STS-B/dev.tsv": tabs(header, row + "5")}),
    )
    assert short(data.train) == [("0", "A cat.", "A dog.", 2.25)]
    with pytest.raises(UserError, match=r"train\.tsv, line 2: score 5\.5 is out of range: it goes from 0 to 5"):
        load("stsb", fill(tmp_path, {"STS-B/train.tsv": tabs(header, row + "5.5")}))


def test_qqp_leaves_out_the_rows_that_were_published_broken(tmp_path: Path) -> None:
    train = tabs("id|qid1|qid2|question1|question2|is_duplicate", "9|1|2|Why?|How so?|1", "8|3|4|Wh", "7|5|6||Eh?|0")
    test = tabs("id|question1|question2", "0|Where?|When?")
    data = load("qqp", fill(tmp_path, {"QQP/train.tsv": train, "QQP/dev.tsv": train, "QQP/test.tsv": test}))
    assert short(data.train) == [("9", "Why?", "How so?", 1), ("7", "", "Eh?", 0)]
    assert data.notes[0] == "train: 1 rows with a wrong number of columns left out, published like that"
    assert short(data.test["test"]) == [("0", "Where?", "When?", None)]


def test_mnli_has_two_validation_and_test_sets(tmp_path: Path) -> None:
    parses = "sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|sentence2_parse|sentence1|sentence2"
    head, row = f"index|promptID|pairID|genre|{parses}", "{}|1|1n|tale|(a)|(b)|(a)|(b)|It rains.|It is wet."
    train = tabs(head + "|label1|gold_label", row.format(0) + "|neutral|entailment")
    dev = tabs(head + "|label1|label2|gold_label", row.format(3) + "|neutral|neutral|contradiction")
    files = {"train.tsv": train, "dev_matched.tsv": dev, "dev_mismatched.tsv": dev}
    files |= {"test_matched.tsv": tabs(head, row.format(5)), "test_mismatched.tsv": tabs(head, row.format(6))}
    data = load("mnli", fill(tmp_path / "MNLI", files))
    assert short(data.train) == [("0", "It rains.", "It is wet.", 0)]
    assert {name: short(part) for name, part in data.validation.items()} == {
        name: [("3", "It rains.", "It is wet.", 2)] for name in ("matched", "mismatched")
    }
    assert {name: part[0].id for name, part in data.test.items()} == {"matched": "5", "mismatched": "6"}


def test_label_names_in_their_official_order_and_a_missing_train_file(tmp_path: Path) -> None:
    rows = ("index|question|sentence|label", "0|Who?|She.|not_entailment", "1|Who?|He.|entailment")
    data = load("qnli", fill(tmp_path, {"QNLI/dev.tsv": tabs(*rows)}))
    assert data.train == [] and data.test == {}
    assert [e.label for e in data.validation["validation"]] == [1, 0]
    data = load("ax", fill(tmp_path, {"diagnostic/diagnostic.tsv": tabs("index|sentence1|sentence2", "0|a|b")}))
    assert data.train == [] and data.validation == {} and short(data.test["test"]) == [("0", "a", "b", None)]
    assert data.labels == ("entailment", "neutral", "contradiction")


def test_a_source_is_not_needed_for_sets_that_are_all_given(tmp_path: Path) -> None:
    paragraph = {
        "context": "It rained.",
        "qas": [{"id": "1", "question": "What?", "answers": [{"text": "It", "answer_start": 0}]}],
    }
    fill(tmp_path, {"mine.json": json.dumps({"data": [{"title": "", "paragraphs": [paragraph]}]})})
    mine = str(tmp_path / "mine.json")
    data = load("squad", tmp_path, train=mine, validation=mine)
    assert [example.question for example in data.train] == ["What?"]
    with pytest.raises(UserError, match="no folder .*elsewhere"):
        load("squad", tmp_path / "elsewhere", train=mine, validation=mine)


def test_the_folder_of_another_task_is_noticed(tmp_path: Path) -> None:
    rows = tabs("index|sentence1|sentence2|label", "0|a|b|1")
    fill(tmp_path, {"WNLI/train.tsv": rows, "WNLI/dev.tsv": rows, "train.tsv": tabs("index|body", "0|a")})
    with pytest.raises(UserError, match="is the folder of wnli, not of rte"):
        load("rte", tmp_path / "WNLI")
    with pytest.raises(UserError, match=r"no column 'sentence' \(found: index, body\)"):
        load("sst2", tmp_path)
    with pytest.raises(UserError, match=r"holds no data of squad \(looked for train-v1\.1\.json"):
        load("squad", tmp_path)
    with pytest.raises(UserError, match="no folder .*missing"):
        load("sst2", tmp_path / "missing")
    with pytest.raises(UserError, match="is a file; give files with task.train"):
        load("sst2", tmp_path / "train.tsv")


def test_a_file_given_stands_for_that_set_of_the_source(tmp_path: Path) -> None:
    rows = tabs("sentence|label", "in the folder|1")
    source = fill(
        tmp_path, {"SST-2/train.tsv": rows, "SST-2/dev.tsv": rows, "mine.jsonl": '{"sentence": "mine", "label": 0}\n'}
    )
    data = load("sst2", source, train=str(tmp_path / "mine.jsonl"))
    assert short(data.train) == [("0", "mine", None, 0)]
    assert short(data.validation["validation"]) == [("0", "in the folder", None, 1)]
    data = load(
        "sst2", train=str(tmp_path / "mine.jsonl"), validation=str(tmp_path / "SST-2/dev.tsv")
    )  # no source asked
    assert short(data.validation["validation"]) == [("0", "in the folder", None, 1)]


def test_imdb_as_json_lines_and_as_published(tmp_path: Path) -> None:
    reviews = {
        "neg/0_2": "Bad\u2028.",
        "neg/3_1": "Dull.",
        "neg/10_4": "Slow.",
        "pos/1_9": "Good.",
        "pos/2_10": "Best.",
    }
    rows = [{"id": name, "label": int(name < "p") ^ 1, "rating": 1, "text": text} for name, text in reviews.items()]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    fill(tmp_path / "imdb", {"train.jsonl": lines, "test.jsonl": lines})
    fill(
        tmp_path / "aclImdb",
        {f"{split}/{name}.txt": text for name, text in reviews.items() for split in ("train", "test")},
    )
    packed, published = load("imdb", tmp_path), load("imdb", tmp_path / "aclImdb")
    assert published.sha256 == packed.sha256
    assert short(published.test["test"]) == [(n, t, None, int(n > "p")) for n, t in reviews.items()]
    assert len(packed.validation["validation"]) == 1 and len(packed.train) == 4


def test_swag_and_codah(tmp_path: Path) -> None:
    head = ",video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label\n"
    row = '0,v,1,"A dog, wet. It","A dog, wet.",It,gold,barks.,flies.,reads.,sings.,2\n'
    wanted = ChoiceExample("0", "A dog, wet.", ("It barks.", "It flies.", "It reads.", "It sings."), 2)
    secret = head.replace(",label", "") + row[:-3] + "\n"
    data = load("swag", fill(tmp_path / "swag", {"train.csv": head + row, "val.csv": head + row, "test.csv": secret}))
    assert data.train == [wanted] == data.validation["validation"]
    assert [e.label for e in data.test["test"]] == [None]

    tsv = tabs("o|Tea is hot. You|wait.|run.|sing.|read.|0", "|Sun is up. We|sleep.|rise.|melt.|hide.|1")
    names = {f"codah_fold0_{split}.tsv": tsv for split in ("train", "dev", "test")}
    data = load("codah", fill(tmp_path / "codah", names))
    assert data.train[0] == ChoiceExample("0", "Tea is hot. You", ("wait.", "run.", "sing.", "read."), 0)
    assert [e.label for e in data.test["test"]] == [0, 1]


def test_a_folder_of_own_data(tmp_path: Path) -> None:
    fill(
        tmp_path, {"train.csv": "text,label\na,x\nb,y\n", "dev.jsonl": '{"text": "c", "label": "y"}\n', "notes.md": "-"}
    )
    data = load("classification", tmp_path)
    assert short(data.train) == [("0", "a", None, 0), ("1", "b", None, 1)]
    assert short(data.validation["validation"]) == [("0", "c", None, 1)]
    fill(tmp_path, {"train.tsv": "text\tlabel\n"})
    with pytest.raises(UserError, match=r"train\.csv and train\.tsv both fit"):
        load("classification", tmp_path)


def test_nothing_is_left_of_a_test_label_that_is_kept_secret(tmp_path: Path) -> None:
    fill(
        tmp_path,
        {
            "test.tsv": tabs("index|sentence|label", "0|a|-1", "1|b|", "2|c|1"),
            "dev.tsv": tabs("sentence|label", "a|-1"),
        },
    )
    test: list[Example] = [*load("sst2", test=str(tmp_path / "test.tsv")).test["test"]]
    assert test == [SequenceExample(str(i), "abc"[i], None, label) for i, label in enumerate((None, None, 1))]
    with pytest.raises(UserError, match=r"dev\.tsv, line 2: label -1 is out of range"):
        load("sst2", validation=str(tmp_path / "dev.tsv"))


def test_rows_in_memory_stand_for_files() -> None:
    import datasets
    import pandas

    rows = [{"body": "fine", "mood": 1}, {"body": "bad", "mood": 0}, {"body": "good", "mood": 1}]
    settings = TaskSettings(name="classification", text="body", label=("mood",))
    frame = pandas.DataFrame(rows).astype({"mood": float})
    loaded = [
        load_task(settings, 0, rows={"train": given, "validation": rows})
        for given in (rows, iter(rows), frame, datasets.Dataset.from_list(rows))
    ]
    assert {data.sha256 for data in loaded} == {loaded[0].sha256}
    assert short(loaded[0].train) == [("0", "fine", None, 1), ("1", "bad", None, 0), ("2", "good", None, 1)]
    with pytest.raises(UserError, match="row 2: no label"):
        load_task(settings, 0, rows={"train": pandas.DataFrame({"body": ["a", "b"], "mood": [1.0, None]})})
