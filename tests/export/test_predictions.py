"""`distil-jax predict`: rows of the command line, files and pipes in, one object a line out."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas
import pytest

from distil_jax import cli
from distil_jax.config import PredictArguments
from distil_jax.errors import UserError
from distil_jax.export import load_predictor, predict
from distil_jax.export.predictions import predict_rows, write_predictions
from distil_jax.export.predictor import Predictor
from distil_jax.tasks.kinds import PredictionOptions
from distil_jax.tasks.kinds.choice import CHOICE
from distil_jax.tasks.requests import usual_reading

TEXTS = ["the cat sat", "a dog ran fast", "red fish", "the moon over the sea"]


def asked(**given: Any) -> PredictArguments:
    return PredictArguments("model", **given)


@pytest.fixture(scope="module")
def classes(task_folder: Callable[..., Path]) -> Predictor:
    return load_predictor(task_folder("classes"))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def file_of(folder: Path, ending: str) -> Path:
    """TEXTS in a file of this format."""
    path = folder / f"rows{ending}"
    if ending == ".txt":
        path.write_text("\n".join(TEXTS), encoding="utf-8")
    elif ending == ".jsonl.gz":
        lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            delimiter = "\t" if ending == ".tsv" else ","
            csv.writer(file, delimiter=delimiter).writerows([["n", "text"], *enumerate(TEXTS)])
    return path


@pytest.mark.parametrize("ending", [".txt", ".jsonl.gz", ".csv", ".tsv"])
def test_every_format_gives_the_same(classes: Predictor, tmp_path: Path, ending: str) -> None:
    done = write_predictions(classes, asked(input=str(file_of(tmp_path, ending)), output=str(tmp_path / "out.jsonl")))
    found = [
        {key: value for key, value in one.items() if key not in ("text", "n")} for one in read(tmp_path / "out.jsonl")
    ]
    assert found == list(predict(classes, TEXTS))
    assert [one["text"] for one in read(tmp_path / "out.jsonl")] == TEXTS
    assert done.rows == 4
    assert done.text.startswith("4 rows in ")


def test_standard_input_to_standard_output(
    classes: Predictor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(json.dumps({"text": text, "id": i * i}) + "\n" for i, text in enumerate(TEXTS))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    write_predictions(classes, asked(input="-", output="-"))
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["id"] for one in found] == [0, 1, 4, 9]
    assert [one["scores"] for one in found] == [one["scores"] for one in predict(classes, TEXTS)]


def test_a_file_gets_its_name_once_all_rows_are_in_it(classes: Predictor, tmp_path: Path) -> None:
    """Rows went into the file in place before, so that a run that failed left half of them for the whole result."""
    seen: list[str] = []
    path = tmp_path / "rows.txt"
    path.write_text("the cat\n" * 50, encoding="utf-8")
    output, linked = tmp_path / "out.jsonl", tmp_path / "link.jsonl"
    output.write_text("earlier\n")
    linked.symlink_to(output)
    given = asked(input=str(path), output=str(linked), batch_size=8)

    def stop(_: str) -> None:
        seen.append(output.read_text())
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_predictions(classes, given, stop)
    assert seen == ["earlier\n"] * 2 and output.read_text() == "earlier\n"
    write_predictions(classes, given)
    assert len(read(output)) == 50 and linked.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.jsonl", "out.jsonl", "rows.txt"]


def test_a_pipe_gets_each_chunk_at_once(classes: Predictor, tmp_path: Path) -> None:
    pipe, seen = tmp_path / "pipe.jsonl", []
    os.mkfifo(pipe)
    (tmp_path / "rows.txt").write_text("the cat\n" * 50, encoding="utf-8")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    given = asked(input=str(tmp_path / "rows.txt"), output=str(pipe), batch_size=8)
    write_predictions(classes, given, lambda _: seen.append(len(os.read(reader, 1 << 20).splitlines())))
    os.close(reader)
    assert seen == [8, 32, 10] and pipe.is_fifo()


def test_rows_that_are_left_out_are_counted(classes: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "the cat"}\n{"text": ""}\nno JSON\n{"text": "a dog"}\n', encoding="utf-8")
    given = asked(input=str(path), output=str(tmp_path / "out.jsonl"))
    with pytest.raises(UserError, match=r"rows.jsonl, line 2: .*'text' is empty.* --on-error skip"):
        write_predictions(classes, given)
    done = write_predictions(classes, dataclasses.replace(given, on_error="skip"))
    assert [one["id"] for one in read(tmp_path / "out.jsonl")] == [0, 3]
    assert f"2 rows skipped (1 x column 'text' is empty, first {path}, line 2; 1 x " in done.text


def test_a_mistake_in_the_input_costs_no_earlier_results(classes: Predictor, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("earlier\n")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "broken.jsonl").write_text("no JSON\n")
    (tmp_path / "other.csv").write_text("title\nthe cat\n")
    for name in ("gone.txt", "empty.txt", "broken.jsonl", "other.csv", "rows.xlsx"):
        with pytest.raises(UserError, match=name):
            write_predictions(classes, asked(input=str(tmp_path / name), output=str(output)))
        assert output.read_text() == "earlier\n"
    done = write_predictions(classes, asked(input=str(tmp_path / "broken.jsonl"), output=str(output), on_error="skip"))
    assert (done.rows, output.read_text()) == (0, "")


def test_a_start_of_endings_on_the_command_line(task_folder: Callable[..., Path], tmp_path: Path) -> None:
    predictor, output = load_predictor(task_folder("choices")), tmp_path / "out.jsonl"
    given = asked(text=("the cat",), pair=("a dog",), endings=("ran", "sat"), output=str(output))
    expected = list(predict(predictor, [{"text": "the cat", "endings": ["a dog ran", "a dog sat"]}]))
    predictor.reading = usual_reading(CHOICE, True)
    write_predictions(predictor, given)
    assert read(output) == expected
    with pytest.raises(UserError, match="--pair not given; give --text and --endings and --pair"):
        write_predictions(predictor, dataclasses.replace(given, pair=()))


def test_what_is_given_has_to_fit(classes: Predictor, tmp_path: Path) -> None:
    path = file_of(tmp_path, ".txt")
    for given, message in [
        ({}, "nothing to predict: --text not given"),
        ({"text": ("a",), "input": "b.txt"}, "--input and --text are both given"),
        ({"text": ("a", "b"), "pair": ("c",)}, "2 --text and 1 --pair"),
        ({"text": ("a",), "question": "b"}, "--question does not fit this model, which reads --text"),
        ({"input": str(tmp_path / "none.txt")}, "none.txt: cannot be read"),
        ({"input": str(tmp_path / "empty.jsonl")}, "empty.jsonl: holds no row to predict"),
    ]:
        (tmp_path / "empty.jsonl").write_text("\n")
        with pytest.raises(UserError, match=message):
            write_predictions(classes, asked(**given, output=str(tmp_path / "out.jsonl")))
    with pytest.raises(UserError, match="is the file that is read"):
        write_predictions(classes, asked(input=str(path), output=str(path)))
    assert path.read_text(encoding="utf-8").splitlines() == TEXTS
    with pytest.raises(UserError, match="cannot be written"):
        write_predictions(classes, asked(input=str(path), output=str(tmp_path / "no" / "out.jsonl")))


@pytest.mark.parametrize(
    ("name", "arguments", "keys"),
    [
        ("tags", {"text": ("the cat sat",)}, {"words", "tags", "scores", "entities"}),
        ("answers", {"question": "the cat", "context": "a dog ran"}, {"answer", "start", "score", "no_answer_score"}),
        ("choices", {"text": ("the cat",), "endings": ("sat", "ran")}, {"choice", "ending", "score", "scores"}),
        ("score", {"text": ("the cat",), "pair": ("a dog",)}, {"score"}),
        ("sets", {"text": ("the cat",), "threshold": 0.0}, {"labels", "scores"}),
    ],
)
def test_a_row_of_the_command_line(
    task_folder: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    name: str,
    arguments: dict[str, Any],
    keys: set[str],
) -> None:
    predict_rows(PredictArguments(str(task_folder(name)), **arguments))
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"id", *keys}
    assert name != "sets" or found["labels"] == ["art", "news", "sport"]


def test_the_command(
    task_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.models, "start", lambda _: None)
    model = str(task_folder("classes"))
    assert cli.main(["predict", model, "--text", "the cat", "a dog"]) == 0
    out, err = capsys.readouterr()
    assert [json.loads(line)["id"] for line in out.splitlines()] == [0, 1]
    assert err.startswith("2 rows in ")
    assert cli.main(["predict", model, "--text", "a", "--threshold", "2"]) == 2
    err = capsys.readouterr().err
    assert "--threshold" in err and "from 0 to 1" in err
    assert cli.main(["predict", model, "--text", "a", "--on-error", "ignore"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_threshold_of_zero_is_not_one_that_was_not_given(
    task_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's own value counts unless another is given, be it 0."""
    predictor = load_predictor(task_folder("answers"))
    predictor.options = dataclasses.replace(predictor.options, no_answer=True, null_threshold=2.5)
    used: list[float] = []

    def chunks(_: Any, options: PredictionOptions, **__: Any) -> list[Any]:
        used.append(options.null_threshold)
        return []

    monkeypatch.setattr(predictor, "chunks", chunks)
    question = {"question": "who sat", "context": "the cat sat"}
    for given in (None, 0.0, -1.5):
        write_predictions(predictor, asked(**question, null_threshold=given))
    assert used == [2.5, 0.0, -1.5]
    with pytest.raises(UserError, match=r"--null-threshold.*nan.*number"):
        asked(null_threshold=float("nan"))
    predictor.options = PredictionOptions()
    with pytest.raises(UserError, match="--null-threshold: this model always gives an answer; .* --no-answer"):
        write_predictions(predictor, asked(**question, null_threshold=0.0))


def test_published_formats_of_the_command(task_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Files of CoNLL columns for tags and of SQuAD's JSON for questions."""
    (tmp_path / "a.conll").write_text("the\tO\ncat\tB-PER\n\nsat\tO\n")
    paragraph = {"context": "the cat sat", "qas": [{"id": "q1", "question": "who sat"}]}
    (tmp_path / "a.txt").write_text("the DT B-PER\ncat NN I-PER\n\nsat VBD O\n")
    (tmp_path / "a.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    output = tmp_path / "out.jsonl"
    for name in ("a.conll", "a.txt"):
        predict_rows(PredictArguments(str(task_folder("tags")), input=str(tmp_path / name), output=str(output)))
        assert [row["words"] for row in read(output)] == [["the", "cat"], ["sat"]]
    predict_rows(PredictArguments(str(task_folder("answers")), input=str(tmp_path / "a.json"), output=str(output)))
    assert [row["id"] for row in read(output)] == ["q1"]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet"])
def test_the_outputs_ending_names_its_format_and_the_inputs_columns_stay(
    classes: Predictor, tmp_path: Path, ending: str
) -> None:
    source = tmp_path / "in.csv"
    source.write_text("id,label,text\nx,old,the cat sat\ny,,a dog ran fast\n", encoding="utf-8")
    output = tmp_path / f"out{ending}"
    write_predictions(classes, asked(input=str(source), output=str(output)))
    table = {".csv": pandas.read_csv, ".tsv": partial(pandas.read_csv, sep="\t"), ".parquet": pandas.read_parquet}
    found = table[ending](output)
    expected = list(predict(classes, ["the cat sat", "a dog ran fast"]))
    assert [*found.columns] == ["id", "label", "text", "predicted_label", "score", "scores"]
    assert [*found["id"]] == ["x", "y"] and found["label"][0] == "old"
    assert [*found["predicted_label"]] == [one["label"] for one in expected]
    assert [*found["score"]] == [one["score"] for one in expected]
    scores = [json.loads(cell) if isinstance(cell, str) else cell for cell in found["scores"]]
    assert scores == [one["scores"] for one in expected]


def test_a_format_that_is_not_written_is_refused_before_the_model_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"out\.xlsx.*\.csv"):
        predict_rows(PredictArguments("no/model", text=("a",), output=str(tmp_path / "out.xlsx")))


def test_blank_lines_do_not_end_a_file_of_texts(classes: Predictor, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("the cat\n\n  \na dog\n", encoding="utf-8")
    done = write_predictions(classes, asked(input=str(tmp_path / "in.txt"), output=str(tmp_path / "out.jsonl")))
    assert [one["id"] for one in read(tmp_path / "out.jsonl")] == [0, 3]
    assert "2 blank lines left out" in done.text


@pytest.mark.parametrize(
    ("data", "given"),
    [
        ("n;text\n1;the cat sat\n2;a dog\n", {}),
        ("n\ttext\n1\tthe cat sat\n2\ta dog\n", {}),
        ('[{"text": "the cat sat"}, {"text": "a dog"}]', {}),
        ("text\nthe cat sat\na dog\n", {"input_format": "csv"}),
        ("text:n\nthe cat sat:1\na dog:2\n", {"input_format": "csv", "separator": ":"}),
    ],
)
def test_tables_through_a_pipe(
    classes: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, given: dict[str, Any]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data.encode())))
    write_predictions(classes, asked(input="-", output=str(tmp_path / "out.jsonl"), **given))
    expected = [one["label"] for one in predict(classes, ["the cat sat", "a dog"])]
    assert [one["label"] for one in read(tmp_path / "out.jsonl")] == expected


def test_data_frames_and_datasets(classes: Predictor) -> None:
    import datasets
    import pandas

    frame = pandas.DataFrame({"text": TEXTS, "n": range(4)})
    expected = list(predict(classes, TEXTS))
    assert list(predict(classes, frame)) == expected
    assert list(predict(classes, datasets.Dataset.from_pandas(frame))) == expected
