"""Answers in words: the official script's numbers on published predictions, its rules one by one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from distil_jax.errors import UserError
from distil_jax.tasks.examples import Answer, QuestionExample
from distil_jax.tasks.metrics.squad import normalise_answer, squad_measures

OFFICIAL = {
    "exact": "exact_match",
    "f1": "squad_f1",
    "HasAns_exact": "has_answer_exact_match",
    "HasAns_f1": "has_answer_f1",
    "NoAns_exact": "no_answer_exact_match",
    "NoAns_f1": "no_answer_f1",
}


def question(name: str, *answers: str) -> QuestionExample:
    return QuestionExample(name, "who?", " ".join(answers), tuple(Answer(text, 0) for text in answers))


def read_squad(path: Path) -> list[QuestionExample]:
    return [
        QuestionExample(
            row["id"],
            row["question"],
            paragraph["context"],
            tuple(Answer(answer["text"], answer["answer_start"]) for answer in row["answers"]),
        )
        for article in json.loads(path.read_text(encoding="utf-8"))["data"]
        for paragraph in article["paragraphs"]
        for row in paragraph["qas"]
    ]


@pytest.mark.parametrize(
    "name", ["v1.1_BERT_ensemble", "v1.1_MatchLSTM_ensemble", "v2.0_BERT_single", "v2.0_BiDAF_SA_ELMo"]
)
def test_published_predictions_get_the_official_scores(shared: Path, name: str) -> None:
    folder = shared / "data/squad"
    version = name.split("_")[0]
    expected = json.loads((folder / "predictions/expected_scores.json").read_text())[name]
    predictions = json.loads((folder / f"predictions/{name}.json").read_text(encoding="utf-8"))
    examples = read_squad(folder / f"dev-{version}.json")
    found = squad_measures(predictions, examples, version_2=version == "v2.0")
    totals = {"total": "total", "HasAns_total": "has_answer_total", "NoAns_total": "no_answer_total"}
    assert {key: found[totals[key]] for key in expected if key in totals} == {
        key: value for key, value in expected.items() if key in totals
    }
    # As shares, so the last of 16 digits may differ by the division.
    shares = {key: 100 * found[actual] for key, actual in OFFICIAL.items() if key in expected}
    assert shares == pytest.approx({key: expected[key] for key in shares}, rel=4e-16, abs=0)
    assert len(found) == len(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Sea.", "sea"),
        ("an apple a day", "apple day"),
        ("A-team", "ateam"),
        ("theatre in the\tpark\n", "theatre in park"),
        ("$1,000.50!", "100050"),
        (
            "caf\N{LATIN SMALL LETTER E WITH ACUTE} \N{EM DASH} \N{LEFT DOUBLE QUOTATION MARK}The",
            "caf\u00e9 \u2014 \u201c",
        ),
        ("the", ""),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "exact", "f1"),
    [
        ("red fish", ["blue bird", "the red fish"], 1.0, 1.0),
        ("big red fish", ["red fish swims", "fish"], 0.0, 2 / 3),  # 2 of 3 words, 2 of 3 words
        ("fish fish fish", ["fish"], 0.0, 0.5),  # a word counts as often as both have it
        ("stone", ["fish"], 0.0, 0.0),
        ("", ["fish"], 0.0, 0.0),
    ],
)
@pytest.mark.parametrize("version_2", [False, True])
def test_best_over_the_answers(prediction: str, answers: list[str], exact: float, f1: float, version_2: bool) -> None:
    found = squad_measures({"q": prediction}, [question("q", *answers)], version_2=version_2)
    assert (found["exact_match"], found["squad_f1"]) == pytest.approx((exact, f1))


def test_answers_without_a_word_left() -> None:
    # 1.1 compares the bare "": exact, but no word in common. 2.0 drops such answers, if others are left or not.
    one, two = question("q", "the"), question("q", "the", "fish")
    first = squad_measures({"q": "a"}, [one], version_2=False)
    assert (first["exact_match"], first["squad_f1"]) == (1.0, 0.0)
    second = squad_measures({"q": "a"}, [one], version_2=True)
    assert (second["exact_match"], second["squad_f1"]) == (1.0, 1.0)
    third = squad_measures({"q": "a"}, [two], version_2=True)
    assert (third["exact_match"], third["squad_f1"]) == (0.0, 0.0)


def test_questions_without_an_answer() -> None:
    examples = [question("a", "red fish"), question("b"), question("c")]
    found = squad_measures({"a": "fish", "b": "", "c": "fish"}, examples, version_2=True)
    assert found == {
        "exact_match": 1 / 3,
        "squad_f1": pytest.approx((2 / 3 + 1) / 3),
        "total": 3.0,
        "has_answer_exact_match": 0.0,
        "has_answer_f1": pytest.approx(2 / 3),
        "has_answer_total": 1.0,
        "no_answer_exact_match": 0.5,
        "no_answer_f1": 0.5,
        "no_answer_total": 2.0,
    }
    assert not any(name.startswith("no_answer") for name in squad_measures({"a": ""}, examples[:1], version_2=True))


def _many(seed: int, count: int = 60) -> tuple[list[QuestionExample], dict[str, str], dict[str, float]]:
    """Questions of which some have no answer, predictions that are partly right, no-answer scores all different."""
    rng = np.random.default_rng(seed)
    words = "red blue green old big cold fish bird tree sea".split()  # noqa: SIM905
    examples, predictions, scores = [], {}, {}
    for number in range(count):
        answer = " ".join(rng.choice(words, 3))
        examples.append(question(f"q{number}", *([answer] if rng.random() < 0.6 else [])))
        predictions[f"q{number}"] = str(rng.choice([answer, " ".join(rng.choice(words, 2)), ""], p=[0.5, 0.3, 0.2]))
        scores[f"q{number}"] = float(rng.normal() - 1.5 * bool(examples[-1].answers))
    return examples, predictions, scores


@pytest.mark.parametrize("seed", range(5))
def test_best_thresholds_as_found_by_trying_all(seed: int) -> None:
    examples, predictions, scores = _many(seed)
    found = squad_measures(predictions, examples, scores, version_2=True)
    tried = {
        limit: squad_measures(predictions, examples, scores, version_2=True, threshold=limit)
        for limit in (-math.inf, *scores.values())
    }
    for best, plain in (("best_exact_match", "exact_match"), ("best_f1", "squad_f1")):
        assert found[best] == pytest.approx(max(one[plain] for one in tried.values()))
        assert tried[found[f"{best}_threshold"]][plain] == pytest.approx(found[best])
        assert found[best] > found[plain]
    assert found["squad_f1"] == squad_measures(predictions, examples, version_2=True)["squad_f1"]


def test_a_threshold_is_the_same_as_empty_predictions() -> None:
    examples, predictions, scores = _many(7)
    emptied = {name: "" if scores[name] > -0.4 else text for name, text in predictions.items()}
    found = squad_measures(predictions, examples, scores, version_2=True, threshold=-0.4)
    plain = squad_measures(emptied, examples, version_2=True)
    assert {name: found[name] for name in plain} == plain


def test_withholding_everything_is_best_at_zero() -> None:
    found = squad_measures(
        {"a": "fish", "b": "fish"}, [question("a"), question("b")], {"a": 3.0, "b": 4.0}, version_2=True
    )
    assert (found["best_f1"], found["best_f1_threshold"]) == (1.0, 0.0)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="no prediction for 1 of 2 questions: first 'b'"):
        squad_measures({"a": "x"}, [question("a", "x"), question("b", "x")], version_2=False)
    with pytest.raises(UserError, match="no no-answer score for 1 of 1 questions: first 'a'"):
        squad_measures({"a": "x"}, [question("a", "x")], {}, version_2=True)
    with pytest.raises(ValueError, match="no questions"):
        squad_measures({}, [], version_2=True)
    with pytest.raises(ValueError, match="'a': its answers are not known"):
        squad_measures({"a": "x"}, [QuestionExample("a", "who?", "x")], version_2=True)
