"""Predictions: those of PyTorch on the same files, for every kind of head, in the order of the rows."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distil_jax.errors import UserError
from distil_jax.export import export, load_predictor, predict, read_run
from distil_jax.export.predictor import PredictionSummary, Predictor
from distil_jax.tasks.kinds import PredictionOptions

CHANCE = random.Random(2)
TEXT = "the cat dog sat on a mat ran fast home red fish big old blue sea bird sky tree river moon"
WORDS = TEXT.split()


def text(least: int = 1, most: int = 28) -> str:
    return " ".join(CHANCE.choices(WORDS, k=CHANCE.randint(least, most)))


TEXTS = [text() for _ in range(30)]


@pytest.fixture(scope="module")
def predictor(task_folder: Callable[..., Path]) -> Callable[..., Predictor]:
    made: dict[Any, Predictor] = {}

    def make(name: str, family: str = "bert") -> Predictor:
        if (name, family) not in made:
            made[name, family] = load_predictor(task_folder(name, family))
        return made[name, family]

    return make


def scores_of(results: list[dict[str, Any]]) -> np.ndarray:
    return np.array([[*result["scores"].values()] for result in results])


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("name", ["classes", "sets", "score"])
def test_texts_are_classified_as_by_the_pipeline(
    task_folder: Callable[..., Path], predictor: Callable[..., Predictor], name: str, family: str
) -> None:
    from transformers import pipeline

    reference: Any = pipeline("text-classification", str(task_folder(name, family)), device="cpu")
    expected = reference(TEXTS, top_k=None, function_to_apply=("sigmoid" if name == "sets" else None))
    found = list(predict(predictor(name, family), TEXTS))
    assert [result["id"] for result in found] == list(range(30))
    if name == "score":
        np.testing.assert_allclose([one["score"] for one in found], [row[0]["score"] for row in expected], atol=1e-5)
        return
    by_label = [{one["label"]: one["score"] for one in row} for row in expected]
    labels = [*found[0]["scores"]]
    np.testing.assert_allclose(scores_of(found), [[row[label] for label in labels] for row in by_label], atol=1e-5)
    assert np.ptp(scores_of(found), axis=0).max() > 0.1, "the texts should differ"
    if name == "classes":
        assert [one["label"] for one in found] == [max(row, key=lambda label: row[label]) for row in by_label]
        assert [one["score"] for one in found] == [max(one["scores"].values()) for one in found]
    else:
        assert [one["labels"] for one in found] == [[n for n in labels if row[n] >= 0.5] for row in by_label]
        assert {len(one["labels"]) for one in found} != {3}


def test_pairs_are_classified_as_by_the_pipeline(
    task_folder: Callable[..., Path], predictor: Callable[..., Predictor]
) -> None:
    from transformers import pipeline

    reference: Any = pipeline("text-classification", str(task_folder("classes")), device="cpu")
    pairs = [(text(1, 20), text(1, 20)) for _ in range(9)]
    expected = reference([{"text": a, "text_pair": b} for a, b in pairs])
    for rows in (pairs, [{"text": a, "pair": b} for a, b in pairs]):
        found = list(predict(predictor("classes"), rows))
        assert [one["label"] for one in found] == [one["label"] for one in expected]
        np.testing.assert_allclose([one["score"] for one in found], [one["score"] for one in expected], atol=1e-5)


def test_words_get_the_tag_of_their_first_token(
    task_folder: Callable[..., Path], predictor: Callable[..., Predictor]
) -> None:
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    folder = task_folder("tags")
    model: Any = AutoModelForTokenClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # "cat,dog" is three tokens, and of "\x07" nothing is left.
    sentences = [["the", "cat,dog", "\x07", "ran"], [*TEXTS[0].split()], ["moon"]]
    found = list(predict(predictor("tags"), sentences))
    for words, one in zip(sentences, found, strict=True):
        inputs = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            chances = model(**inputs).logits[0].softmax(-1).numpy()
        place = {word: i for i, word in reversed([*enumerate(inputs.word_ids(0))])}
        tags = [
            model.config.id2label[int(chances[place[i]].argmax())] if i in place else "O" for i in range(len(words))
        ]
        scores = [float(chances[place[i]].max()) if i in place else 0.0 for i in range(len(words))]
        assert one["tags"] == tags
        assert one["words"] == words
        np.testing.assert_allclose(one["scores"], scores, atol=1e-5)
        for entity in one["entities"]:
            inside = slice(entity["start"], entity["end"])
            assert entity["text"] == " ".join(words[inside])
            assert {tag[2:] for tag in tags[inside]} == {entity["type"]}
            assert entity["score"] == pytest.approx(np.mean(one["scores"][inside]), abs=1e-6)


def test_answers_are_the_best_spans(task_folder: Callable[..., Path], predictor: Callable[..., Predictor]) -> None:
    import torch
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    folder = task_folder("answers")
    model: Any = AutoModelForQuestionAnswering.from_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    rows = [{"question": text(1, 4), "context": text(5, 30), "id": f"q{i}"} for i in range(6)]
    found = list(predict(predictor("answers"), rows, options=PredictionOptions(n_best=3)))
    assert [one["id"] for one in found] == [row["id"] for row in rows]
    for row, one in zip(rows, found, strict=True):
        inputs = tokenizer(row["question"], row["context"], return_tensors="pt", return_offsets_mapping=True)
        offsets = inputs.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            logits = model(**inputs)
        start, end = logits.start_logits[0].tolist(), logits.end_logits[0].tolist()
        inside = [i for i, sequence in enumerate(inputs.sequence_ids(0)) if sequence == 1]
        spans = [(start[i] + end[j], i, j) for i, j in itertools.product(inside, inside) if i <= j < i + 30]
        score, first, last = max(spans)
        assert one["answer"] == row["context"][offsets[first][0] : offsets[last][1]]
        assert row["context"][one["start"] :].startswith(one["answer"])
        assert one["no_answer_score"] == pytest.approx(start[0] + end[0] - score, abs=1e-4)
        assert one["n_best"][0] == {"answer": one["answer"], "start": one["start"], "score": one["score"]}
        assert len(one["n_best"]) == 3


def test_a_question_without_answer_is_given_none_if_it_may(predictor: Callable[..., Predictor]) -> None:
    rows = [{"question": "the cat", "context": text(5, 20)} for _ in range(8)]
    scores = [one["no_answer_score"] for one in predict(predictor("answers"), rows)]
    middle = float(np.median(scores))
    options = PredictionOptions(no_answer=True, null_threshold=middle)
    found = [one["answer"] == "" for one in predict(predictor("answers"), rows, options=options)]
    assert found == [score > middle for score in scores]
    assert 0 < sum(found) < 8


def test_a_long_context_is_searched_to_its_end(predictor: Callable[..., Predictor]) -> None:
    """The only word that the question's answer can be is put behind what one window holds."""
    context = "the cat sat . " * 60 + "moon"
    options = PredictionOptions(n_best=400)
    found = next(predict(predictor("answers"), [("the dog", context)], options=options))
    assert max(one["start"] for one in found["n_best"]) > 600


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_choices_are_those_of_pytorch(
    task_folder: Callable[..., Path], predictor: Callable[..., Predictor], family: str
) -> None:
    import torch
    from transformers import AutoModelForMultipleChoice, AutoTokenizer

    folder = task_folder("choices", family)
    model: Any = AutoModelForMultipleChoice.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Numbers of endings that differ cannot be in one batch, and still come out in their order.
    rows = [{"text": text(1, 10), "endings": [text(1, 9) for _ in range(2 + i % 3)]} for i in range(7)]
    found = list(predict(predictor("choices", family), rows))
    for row, one in zip(rows, found, strict=True):
        inputs = tokenizer([row["text"]] * len(row["endings"]), row["endings"], padding=True, return_tensors="pt")
        with torch.no_grad():
            scores = model(**{name: values[None] for name, values in inputs.items()}).logits[0].softmax(-1).numpy()
        np.testing.assert_allclose(one["scores"], scores, atol=1e-5)
        assert one["choice"] == scores.argmax()
        assert one["ending"] == row["endings"][one["choice"]]


def test_batches_and_order_change_nothing(predictor: Callable[..., Predictor]) -> None:
    model = predictor("classes")
    rows = [{"id": f"row {i}", "text": one} for i, one in enumerate(TEXTS)]
    alone = list(predict(model, rows, batch_size=8))
    shuffled = CHANCE.sample(rows, len(rows))
    found = list(predict(model, shuffled))
    assert [one["id"] for one in found] == [row["id"] for row in shuffled]
    by_id = {one["id"]: one for one in found}
    for one in alone:
        assert by_id[one["id"]]["label"] == one["label"]
        assert by_id[one["id"]]["score"] == pytest.approx(one["score"], abs=1e-5)


def test_rows_are_taken_as_they_are_needed(predictor: Callable[..., Predictor]) -> None:
    taken: list[int] = []

    def rows() -> Iterator[str]:
        for number in itertools.count():
            taken.append(number)
            yield "the cat sat"

    found = predict(predictor("classes"), rows(), batch_size=8)
    next(found)
    assert len(taken) == 8, "the first results come with the first batch"
    for _ in range(8):
        next(found)
    assert len(taken) == 40, "later chunks are larger, and no more than one is held"


def test_bad_rows_stop_or_are_left_out_and_counted(predictor: Callable[..., Predictor]) -> None:
    rows: list[Any] = ["the cat", "", {"text": 5}, "a dog", {"title": "x"}]
    with pytest.raises(UserError, match=r"rows, row 2: .*'text' is empty.*on_error=.skip"):
        list(predict(predictor("classes"), rows))
    found = list(predict(predictor("classes"), rows, on_error="skip"))
    assert [one["id"] for one in found] == [0, 3]
    with pytest.raises(UserError, match="on_error = 'ignore'"):
        next(predict(predictor("classes"), rows, on_error="ignore"))


def test_what_is_cut_is_told(task_folder: Callable[..., Path]) -> None:
    summary = PredictionSummary()
    model = load_predictor(task_folder("classes"), max_length=8)
    assert len(list(predict(model, ["cat " * 20, "dog"], summary=summary))) == 2
    assert summary.rows == 2
    assert dict(summary.notes) == {"examples cut to 8 tokens": 1}


def test_bfloat16_is_close(task_folder: Callable[..., Path], predictor: Callable[..., Predictor]) -> None:
    half = scores_of(list(predict(load_predictor(task_folder("classes"), dtype="bfloat16"), TEXTS[:8])))
    whole = scores_of(list(predict(predictor("classes"), TEXTS[:8])))
    np.testing.assert_allclose(half, whole, atol=0.05)
    assert np.abs(half - whole).max() > 1e-5


def test_what_cannot_predict_is_refused(
    task_folder: Callable[..., Path], model_folder: Callable[..., str], tiny_run: Path, task_run: Path, tmp_path: Path
) -> None:
    dropped = tmp_path / "seed1"
    shutil.copytree(task_run, dropped, ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(UserError, match="no task head"):
        load_predictor(model_folder())
    with pytest.raises(UserError, match="masked language model"):
        load_predictor(tiny_run)
    with pytest.raises(UserError, match="dropped, since another run of the study is better"):
        load_predictor(dropped)
    with pytest.raises(UserError, match="max_length = 65: the model has 64 positions"):
        load_predictor(task_folder("classes"), max_length=65)
    with pytest.raises(UserError, match="only the folder of a run has steps"):
        load_predictor(task_folder("classes"), step=3)
    with pytest.raises(UserError, match="dtype = 'int8'"):
        load_predictor(task_folder("classes"), dtype="int8")


def test_a_run_predicts_as_its_export(task_run: Path, tmp_path: Path) -> None:
    export(task_run, tmp_path / "model")
    rows = [{"first": text(1, 6), "second": text(1, 6)} for _ in range(5)]
    found = list(predict(task_run, rows))
    exported = list(predict(tmp_path / "model", [(row["first"], row["second"]) for row in rows]))
    assert found == exported == list(predict(tmp_path / "model", rows)), "the columns go with the model"
    assert {*found[0]["scores"]} == {"same", "other"}
    best = read_run(task_run).step
    assert list(predict(load_predictor(task_run, step=best), rows)) == found
    for step in {1, 2, 3, 4} - {best}:
        assert list(predict(load_predictor(task_run, step=step), rows)) != found


def test_an_export_wants_pairs_as_its_run_did(task_run: Path, tmp_path: Path) -> None:
    export(task_run, tmp_path / "model")
    with pytest.raises(UserError, match="no column 'second'.* 'pair' or 'text_pair'"):
        list(predict(tmp_path / "model", ["a text alone"]))
    path = tmp_path / "model" / "config.json"
    raw = json.loads(path.read_text())
    for name in ("pairs", "name", "text", "pair"):  # as exported before they were written down
        del raw["distil_jax"][name]
    path.write_text(json.dumps(raw))
    assert len(list(predict(tmp_path / "model", ["a text alone", ("one", "two")]))) == 2


def test_an_exported_model_of_single_texts_leaves_a_second_column_alone(
    task_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = said_to_read(task_folder("classes"), tmp_path / "model", pairs=False)
    rows = [{"text": one, "pair": "the dog"} for one in TEXTS[:3]]
    assert list(predict(folder, rows)) == list(predict(folder, TEXTS[:3]))
    assert list(predict(folder, rows)) != list(predict(task_folder("classes"), rows))


def test_an_exported_choice_whose_endings_have_a_start(task_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = said_to_read(task_folder("choices"), tmp_path / "model", pairs=True)
    rows = [{"text": "the cat", "pair": "a dog", "endings": ["ran", "sat"]}]
    (found,) = predict(folder, rows)
    (whole,) = predict(task_folder("choices"), [{"text": "the cat", "endings": ["a dog ran", "a dog sat"]}])
    assert found == whole
    with pytest.raises(UserError, match="no column 'pair' or 'text_pair'"):
        list(predict(folder, [{"text": "the cat", "endings": ["ran", "sat"]}]))


def said_to_read(folder: Path, copy: Path, *, pairs: bool) -> Path:
    """A copy of a model folder that says of itself, as an export does, whether it reads pairs."""
    shutil.copytree(folder, copy)
    raw = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(raw | {"distil_jax": {"pairs": pairs}}))
    return copy


def test_a_run_below_the_home_folder(task_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(task_run.parent))
    assert load_predictor(f"~/{task_run.name}", step=1).reading.pairs


def test_a_run_trained_on_pairs_wants_pairs(task_run: Path) -> None:
    with pytest.raises(UserError, match="no column 'second' or 'pair'"):
        list(predict(task_run, ["a text alone"]))


@pytest.mark.parametrize("rows", ["the cat", {"text": "the cat"}])
def test_one_row_that_is_in_no_list_is_refused(predictor: Callable[..., Predictor], rows: Any) -> None:
    with pytest.raises(UserError, match="put it into a list"):
        list(predict(predictor("classes"), rows))
