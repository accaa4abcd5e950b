"""Scores of ready models: those that finetune reported and PyTorch gets, on any devices, in any order of labels."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distil_jax.cli import main
from distil_jax.config import Config, load_config, with_overrides
from distil_jax.errors import UserError
from distil_jax.evaluation import compare_studies
from distil_jax.evaluation.study_report import read_result
from distil_jax.evaluation.task_scores import score_model
from distil_jax.export import export, predict
from distil_jax.hf import load_tokenizer, read_task_model, save_pretrained

WORDS = ["cat", "dog", "sat", "ran", "home", "red", "fish", "bird", "sky", "moon"]
NAMES = ("bad", "fair", "good")  # of the random model with classes in tests/conftest.py


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def config_of(model: Path, changes: Mapping[str, Any]) -> Config:
    return with_overrides(load_config("finetune"), {"model.initial": str(model), "evaluation.batch_size": 8, **changes})


def relabelled(model: Path, folder: Path, labels: list[str]) -> Path:
    """The model with other names of its outputs."""
    shutil.copytree(model, folder)
    path = folder / "config.json"
    raw = json.loads(path.read_text()) | {"id2label": {str(i): name for i, name in enumerate(labels)}}
    path.write_text(json.dumps(raw | {"label2id": {name: i for i, name in enumerate(labels)}}))
    return folder


def centred(model: Path, rows: Path, folder: Path) -> Path:
    """The model with a bias under which no class comes out for all of the rows."""
    texts = [json.loads(line)["text"] for line in rows.read_text().splitlines()]
    scores = [[*one["scores"].values()] for one in predict(model, texts)]
    encoder, params, head, *_ = read_task_model(model, "sequence")
    output = params["task_head"]["output"]
    output = {**output, "bias": output["bias"] - np.log(np.maximum(scores, 1e-20)).mean(axis=0).astype(np.float32)}
    params = {**params, "task_head": {**params["task_head"], "output": output}}
    save_pretrained(folder, encoder, params, head=head, tokenizer=load_tokenizer(model))
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """27 labelled texts of 1 to 20 words: no multiple of any number of devices or of a batch."""
    chance = random.Random(4)
    made = [
        {"text": " ".join(chance.choices(WORDS, k=1 + i % 20)), "label": chance.choice([*NAMES])} for i in range(27)
    ]
    return jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", made)


@pytest.fixture(scope="module")
def asked(rows: Path) -> dict[str, Any]:
    return {"task.name": "classification", "task.validation": str(rows), "task.max_length": 24}


def test_the_score_is_that_of_the_run(task_run: Path, tmp_path: Path) -> None:
    """Of the run itself and of its export, to the last bit; also as a labelled test set, and as compare reads it."""
    export(task_run, tmp_path / "model")
    records = json.loads((task_run / "result.json").read_text())
    recorded = load_config(task_run / "config.toml")
    task = dataclasses.replace(recorded.task, max_length=0, test=recorded.task.validation)  # the model has the length
    for number, model in enumerate((tmp_path / "model", task_run)):
        output = tmp_path / f"result{number}"
        changes = {"model.initial": str(model), "run.output": str(output)}
        config = with_overrides(dataclasses.replace(recorded, task=task), changes)
        found = score_model(config)
        plain = {name: value for name, value in found.measures.items() if not name.startswith("test_")}
        tested = {name.removeprefix("test_"): value for name, value in found.measures.items() if name not in plain}
        assert plain == records["measures"]
        assert tested == {name: value for name, value in plain.items() if name != "score"}
        assert read_result(output)["measures"] == found.measures
        assert read_result(output)["settings"]["max_length"] == 24
        table = compare_studies([output, task_run])
        assert table["tasks"]["classification"]["retention"] == {task_run.name: 1.0}
        text = (output / "result.json").read_text()
        score_model(config)
        again = json.loads((output / "result.json").read_text())
        assert {**again, "seconds": 0} == {**json.loads(text), "seconds": 0}


def test_a_result_has_every_class_and_the_confusion_matrix(
    task_folder: Callable[..., Path], rows: Path, asked: dict[str, Any], tmp_path: Path
) -> None:
    from sklearn.metrics import classification_report, confusion_matrix

    folder = centred(task_folder("classes"), rows, tmp_path / "centred")
    records = [json.loads(line) for line in rows.read_text().splitlines()]
    truth = [row["label"] for row in records]
    predicted = [one["label"] for one in predict(folder, [row["text"] for row in records])]
    output = tmp_path / "scores"
    found = score_model(config_of(folder, {**asked, "run.output": str(output)})).details["validation"]
    assert found["confusion"] == confusion_matrix(truth, predicted, labels=[*NAMES]).tolist()
    report: Any = classification_report(truth, predicted, output_dict=True, zero_division=0)  # type: ignore[arg-type]
    for name in NAMES:
        expected = {"f1": report[name]["f1-score"], "rows": report[name]["support"]}
        expected |= {measure: report[name][measure] for measure in ("precision", "recall")}
        assert found["classes"][name] == pytest.approx(expected)
    assert read_result(output)["details"]["validation"] == found


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_the_score_is_scikit_learns_of_transformers_predictions(
    task_folder: Callable[..., Path], rows: Path, asked: dict[str, Any], family: str, tmp_path: Path
) -> None:
    import torch
    from sklearn.metrics import accuracy_score, f1_score
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = centred(task_folder("classes", family), rows, tmp_path / "centred")
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    records = [json.loads(line) for line in rows.read_text().splitlines()]
    predicted = []
    for row in records:
        with torch.no_grad():
            logits = model(**tokenizer(row["text"], truncation=True, max_length=24, return_tensors="pt")).logits
        predicted.append(NAMES[int(logits.argmax())])
    truth = [row["label"] for row in records]
    assert len({*predicted}) > 1, "the texts should differ"
    found = score_model(config_of(folder, asked)).measures
    assert found["score"] == found["accuracy"] == accuracy_score(truth, predicted)
    assert found["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"), abs=1e-12)
    # With the outputs in another order, transformers would say the same names if the weights were moved along.
    encoder, params, head, *_ = read_task_model(folder, "sequence")
    output, order = params["task_head"]["output"], [2, 0, 1]
    moved = {"kernel": output["kernel"][:, order], "bias": output["bias"][order]}
    head = dataclasses.replace(head, labels=tuple(NAMES[i].upper() for i in order))
    moved = {**params, "task_head": {**params["task_head"], "output": moved}}
    save_pretrained(tmp_path / "moved", encoder, moved, head=head, tokenizer=load_tokenizer(folder))
    assert score_model(config_of(tmp_path / "moved", asked)).measures == found
    # Weights that stay where they are under other names are another model.
    wrong = relabelled(folder, tmp_path / "wrong", [NAMES[i] for i in order])
    moved_names = [NAMES[order[NAMES.index(name)]] for name in predicted]
    assert score_model(config_of(wrong, asked)).measures["accuracy"] == accuracy_score(truth, moved_names)


def test_every_example_counts_once_on_any_number_of_devices(
    task_folder: Callable[..., Path], asked: dict[str, Any], tmp_path: Path
) -> None:
    flags = [f"--{name}={value}" for name, value in asked.items()]
    found = []
    for count, size in ((1, 27), (3, 4), (8, 8)):
        output = tmp_path / str(count)
        more = [f"--parallel.devices={count}", f"--evaluation.batch-size={size}", f"--output={output}"]
        assert main(["evaluate", str(task_folder("classes")), *flags, *more]) == 0
        found.append(read_result(output)["measures"])
    assert found[0] == found[1] == found[2]
    assert 27 * found[0]["accuracy"] == pytest.approx(round(27 * found[0]["accuracy"]), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "task", "row"),
    [
        ("tags", "tagging", {"words": ["the", "cat"], "tags": ["B-PER", "O"]}),
        ("score", "regression", {"text": "the cat", "label": 0.5}),
        ("sets", "multilabel", {"text": "the cat", "label": ["news", "art"]}),
        ("choices", "choice", {"text": "the cat", "endings": ["sat", "ran home"], "label": 1}),
        ("answers", "question", {"question": "the cat", "context": "sat at home", "id": "0",
                                 "answers": {"text": ["home"], "answer_start": [7]}}),
    ],
)  # fmt: skip
def test_other_heads_of_fewer_rows_than_classes(
    task_folder: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    task: str,
    row: dict[str, Any],
) -> None:
    """Of tags and sets the data have fewer classes than the model: the others are classes nonetheless."""
    source = jsonl(tmp_path / "rows.jsonl", [row | ({"id": str(i)} if "id" in row else {}) for i in range(3)])
    found = score_model(config_of(task_folder(name), {"task.name": task, "task.validation": str(source)}))
    assert 0 <= abs(found.measures["score"]) <= 1 and len(found.data.validation["validation"]) == 3
    assert main(["evaluate", str(task_folder(name)), "--task", task, "--task.validation", str(source)]) == 0
    printed = capsys.readouterr().out
    assert f"{found.measures['score']:.4f}" in printed and "validation 3" in printed
    for label, measures in found.details.get("validation", {}).get("classes", {}).items():
        (line,) = (line for line in printed.splitlines() if line.startswith(f"| {label} "))
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells == [label, *(f"{x:.4f}" if isinstance(x, float) else str(x) for x in measures.values())]


def test_correlations_and_choices_are_those_of_the_predictions(
    task_folder: Callable[..., Path], tmp_path: Path
) -> None:
    from scipy.stats import pearsonr, spearmanr

    chance = random.Random(2)
    texts = [" ".join(chance.choices(WORDS, k=1 + i)) for i in range(12)]
    scores = [chance.random() for _ in texts]
    pairs = [{"text": text, "label": label} for text, label in zip(texts, scores, strict=True)]
    records = [row["score"] for row in predict(task_folder("score"), texts)]
    changes = {"task.name": "regression", "task.validation": str(jsonl(tmp_path / "scores.jsonl", pairs))}
    found = score_model(config_of(task_folder("score"), changes)).measures
    assert found["pearson"] == pytest.approx(pearsonr(records, scores)[0], abs=1e-5)
    assert found["spearman"] == pytest.approx(spearmanr(records, scores)[0], abs=1e-5)
    rows = [{"text": text, "endings": texts[i : i + 2], "label": i % 2} for i, text in enumerate(texts[:10])]
    right = [
        row["choice"] == asked["label"] for row, asked in zip(predict(task_folder("choices"), rows), rows, strict=True)
    ]
    changes = {"task.name": "choice", "task.validation": str(jsonl(tmp_path / "choices.jsonl", rows))}
    found = score_model(config_of(task_folder("choices"), changes)).measures
    assert any(right) and not all(right) and found["accuracy"] == pytest.approx(np.mean(right))


def test_own_data_need_not_have_all_classes_in_any_of_their_parts(
    task_folder: Callable[..., Path], rows: Path, asked: dict[str, Any], tmp_path: Path
) -> None:
    """A test set alone, a set of one class, a part with a class that the first lacks."""
    records = [json.loads(line) for line in rows.read_text().splitlines()]
    one = jsonl(tmp_path / "one.jsonl", [row for row in records if row["label"] == "good"])
    model, alone = task_folder("classes"), {"task.name": "classification", "task.max_length": 24}
    whole = score_model(config_of(model, asked)).measures
    found = score_model(config_of(model, {**alone, "task.test": str(rows)})).measures
    assert found == {f"test_{name}": value for name, value in whole.items() if name != "score"}
    good = score_model(config_of(model, {**alone, "task.validation": str(one)})).measures
    both = score_model(config_of(model, {**alone, "task.validation": str(one), "task.test": str(rows)})).measures
    assert both == {**good, **found}
    right = [row["label"] == "good" for row in predict(model, [json.loads(line)["text"] for line in one.open()])]
    assert good["accuracy"] == np.mean(right)


def test_a_label_that_the_model_lacks_is_told_with_file_and_line(
    task_folder: Callable[..., Path], rows: Path, asked: dict[str, Any], tmp_path: Path
) -> None:
    records = [json.loads(line) for line in rows.read_text().splitlines()]
    wrong = jsonl(tmp_path / "wrong.jsonl", [*records[:4], {**records[4], "label": "meh"}, *records[5:]])
    with pytest.raises(UserError, match=r"wrong.jsonl, line 5: label 'meh' is unknown \(known: bad, fair, good"):
        score_model(config_of(task_folder("classes"), {**asked, "task.validation": str(wrong)}))


def test_numbers_are_those_of_the_models_classes(
    task_folder: Callable[..., Path], rows: Path, asked: dict[str, Any], tmp_path: Path
) -> None:
    records = [json.loads(line) for line in rows.read_text().splitlines()]
    numbered = [{**row, "label": NAMES.index(row["label"])} for row in records]
    changes = {**asked, "task.validation": str(jsonl(tmp_path / "numbers.jsonl", numbered))}
    expected = score_model(config_of(task_folder("classes"), asked)).measures
    found = score_model(config_of(task_folder("classes"), changes))
    assert found.measures == expected
    assert any("labels are numbers, taken for bad, fair, good in this order" in note for note in found.notes)
    stars = [{**row, "label": row["label"] + 1} for row in numbered]
    changes |= {"task.validation": str(jsonl(tmp_path / "stars.jsonl", stars)), "task.labels": ("1", "2", "3")}
    unnamed = relabelled(task_folder("classes"), tmp_path / "unnamed", [f"LABEL_{i}" for i in range(3)])
    found = score_model(config_of(unnamed, changes))
    assert found.measures == expected
    assert any("its labels have no names; taken in the order 1, 2, 3" in note for note in found.notes)


@pytest.mark.parametrize(
    ("names", "written"),
    [
        (["1 star", "2 stars", "3 stars"], [1, 2, 3]),
        (["1 star", "2 stars", "3 stars"], [1.0, 2.0]),
        (["1 star", "2 stars", "3 stars"], ["1 Star", "2 Stars", "3 Stars"]),
        (["bad", "fair", "good"], [1, 2, 3]),
        (["Positive", "positive", "negative"], ["Positive", "positive", "negative"]),
        (["10", "2", "3"], ["10.0", "2.0", "3.0"]),
    ],
)
def test_labels_are_matched_to_the_models_names(
    task_folder: Callable[..., Path],
    rows: Path,
    asked: dict[str, Any],
    tmp_path: Path,
    names: list[str],
    written: list[Any],
) -> None:
    """The measures of the same rows, whatever the classes are called in model and data."""
    records = [json.loads(line) for line in rows.read_text().splitlines()]
    records = [row for row in records if NAMES.index(row["label"]) < len(written)]
    plain = {**asked, "task.validation": str(jsonl(tmp_path / "plain.jsonl", records))}
    spelled = [{**row, "label": written[NAMES.index(row["label"])]} for row in records]
    changes = {**asked, "task.validation": str(jsonl(tmp_path / "spelled.jsonl", spelled))}
    model = relabelled(task_folder("classes"), tmp_path / "named", names)
    assert score_model(config_of(model, changes)).measures == (
        score_model(config_of(task_folder("classes"), plain)).measures
    )


def test_numbers_that_may_be_counted_in_two_ways_are_asked_for(
    task_folder: Callable[..., Path], rows: Path, asked: dict[str, Any], tmp_path: Path
) -> None:
    records = [json.loads(line) for line in rows.read_text().splitlines()]
    records = [{**row, "label": NAMES.index(row["label"]) + 1} for row in records if row["label"] != "good"]
    changes = {**asked, "task.validation": str(jsonl(tmp_path / "two.jsonl", records))}
    with pytest.raises(UserError, match=r"VALUE=NAME.*1=bad"):
        score_model(config_of(task_folder("classes"), changes))
    changes["task.labels"] = ("1=bad", "2=fair", "3=good")
    found = score_model(config_of(task_folder("classes"), changes))
    assert {example.label for example in found.data.validation["validation"]} == {0, 1}


def test_a_validation_set_drawn_from_the_training_data_is_told(
    task_folder: Callable[..., Path], rows: Path, asked: dict[str, Any]
) -> None:
    changes = {"task.name": "classification", "task.train": str(rows), "task.max_length": 24}
    found = score_model(config_of(task_folder("classes"), changes))
    assert any("may have learned from it; give task.validation" in note for note in found.notes)
    assert not [note for note in score_model(config_of(task_folder("classes"), asked)).notes if "learned" in note]


def test_classes_without_names_are_taken_by_number(
    task_folder: Callable[..., Path], rows: Path, asked: dict[str, Any], tmp_path: Path
) -> None:
    expected = score_model(config_of(task_folder("classes"), asked)).measures
    unnamed = relabelled(task_folder("classes"), tmp_path / "unnamed", [f"LABEL_{i}" for i in range(3)])
    found = score_model(config_of(unnamed, asked))  # "bad", "fair", "good" are in order
    assert found.measures == expected
    assert any("its labels have no names; taken in the order bad, fair, good" in note for note in found.notes)
    records = [json.loads(line) for line in rows.read_text().splitlines()]
    records = [{**row, "label": NAMES.index(row["label"])} for row in records if row["label"] != "fair"]
    numbers = jsonl(tmp_path / "numbers.jsonl", records)  # 0 and 2: the class between them is still there
    names = jsonl(tmp_path / "names.jsonl", [{**row, "label": NAMES[row["label"]]} for row in records])
    fewer = {**asked, "task.validation": str(numbers)}
    assert score_model(config_of(unnamed, fewer)).measures == (
        score_model(config_of(task_folder("classes"), {**asked, "task.validation": str(names)})).measures
    )
    beyond = jsonl(tmp_path / "beyond.jsonl", [{**row, "label": row["label"] + 1} for row in records])
    with pytest.raises(UserError, match="`LABEL_0`, `LABEL_1`, `LABEL_2`, but classification has 2 labels: `1`, `3`"):
        score_model(config_of(unnamed, {**asked, "task.validation": str(beyond)}))


def test_the_command(
    task_folder: Callable[..., Path], rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its table and file; then refusals, in one line each, after which the file is what it was."""
    model, flags = str(task_folder("classes")), ["--task", "classification", f"--task.validation={rows}"]
    flags += ["--task.max-length=24", "--output", str(tmp_path / "scores")]
    assert main(["evaluate", model, *flags]) == 0
    result = json.loads((tmp_path / "scores" / "result.json").read_text())
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["Classification", "measured"]
    assert ["rows", f"validation {len(rows.read_text().splitlines())}"] in lines
    assert [line for line in lines if line[0] in ("score: accuracy", "accuracy", "macro F1")] == [
        ["score: accuracy", f"{result['score']:.4f}"],
        ["accuracy", f"{result['measures']['accuracy']:.4f}"],
        ["macro F1", f"{result['measures']['macro_f1']:.4f}"],
    ]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    stars = jsonl(tmp_path / "stars.jsonl", [{"text": "the cat", "label": name} for name in ("one", "two", "three")])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    other = str(task_folder("classes", "distilbert"))
    for arguments, words in (
        ([other, *flags], "holds another result (Classification of"),
        ([model, *flags, "--task.max-length=8"], "holds another result"),
        ([model, *flags, f"--run.output={tmp_path / 'mine'}"], "mine: holds other files"),
        (
            [model, *flags, f"--task.validation={stars}"],
            "`bad`, `fair`, `good`, but classification has 3 labels: `one`",
        ),
        ([model, *flags, "--task.max-length=128"], "--task.max-length 128: "),
        ([model, *flags, "--task", "squad"], "`good`), but squad is a task of answers"),
        ([model, *flags, "--task", "regression"], "but regression is a task of scores"),
        ([str(task_folder("score")), *flags], "a score), but classification is a task of whole texts"),
        ([model, *flags, "--training.batch-size=4"], "--training.batch-size has no effect"),
        ([model, *flags, "--task.class-weights=balanced"], "--task.class-weights has no effect"),
        ([model, *flags, f"--output={tmp_path / 'new'}", "--parallel.devices=99"], "--parallel.devices 99"),
        ([model, other, *flags], "2 models given before the flags"),
        ([*flags, model], "0 models given before the flags"),
        ([str(tmp_path / "nowhere"), *flags], "nowhere"),
    ):
        assert main(["evaluate", *arguments]) == 2, words
        out, err = capsys.readouterr()
        assert out == "" and words in err.splitlines()[-1], err
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before, words


def test_a_run_is_no_place_for_a_result_of_something_else(
    task_folder: Callable[..., Path], task_run: Path, asked: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="task: holds other files"):
        score_model(config_of(task_folder("classes"), {**asked, "run.output": str(task_run)}))
