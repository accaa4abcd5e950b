"""Held-out measures of models whose answers are known beforehand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from distil_jax.data.corpus import Corpus, open_corpus
from distil_jax.errors import UserError
from distil_jax.evaluation.heldout import (
    LanguageModel,
    evaluate_model,
    evaluate_paths,
    fill_mask,
    load_language_model,
)


@pytest.fixture(scope="module")
def corpus(tiny_world: Path) -> Corpus:
    return open_corpus(tiny_world / "corpus" / "validation")


@pytest.fixture(scope="module")
def teacher(tiny_world: Path) -> LanguageModel:
    return load_language_model(str(tiny_world / "teacher"))


def constant(model: LanguageModel, bias: np.ndarray) -> LanguageModel:
    """The model with weights of zero and this bias of the head, so that its logits are `bias` everywhere."""
    params: Any = jax.tree.map(np.zeros_like, model.params)
    params["mlm_head"]["bias"] = bias.astype(np.float32)
    return dataclasses.replace(model, params=params)


def predictions_of(corpus: Corpus, rows: int) -> int:
    lengths = (corpus.row_range(0, rows) != corpus.pad_id).sum(1)
    return sum(-(-int(length) * 15 // 100) for length in lengths)


def test_a_model_that_knows_nothing(corpus: Corpus, teacher: LanguageModel) -> None:
    blank = constant(teacher, np.zeros(corpus.vocab_size))
    measures = evaluate_model(blank, corpus, rows=12)
    assert measures.keys() == {"mlm_loss", "perplexity", "accuracy", "predictions"}
    assert measures["mlm_loss"] == pytest.approx(np.log(corpus.vocab_size), rel=1e-6)
    assert measures["perplexity"] == pytest.approx(corpus.vocab_size, rel=1e-5)
    assert measures["accuracy"] == 0.0  # it answers with id 0, which is padding and never asked for
    assert measures["predictions"] == predictions_of(corpus, 12)


def test_likeness_to_a_teacher_of_known_probabilities(corpus: Corpus, teacher: LanguageModel) -> None:
    noise = np.random.default_rng(0)
    one, other = noise.normal(size=(2, corpus.vocab_size))
    other[one.argmax()] = other.max() + 1
    measures = evaluate_model(constant(teacher, one), corpus, teacher=constant(teacher, other), rows=12)
    log_p, log_q = (bias - np.log(np.exp(bias).sum()) for bias in (other, one))
    assert measures["kl"] == pytest.approx(np.sum(np.exp(log_p) * (log_p - log_q)), rel=1e-5)
    assert measures["agreement"] == 1.0


def test_the_student_is_measured_against_its_teacher_over_all_rows(
    tiny_world: Path, tiny_run: Path, corpus: Corpus, teacher: LanguageModel, tmp_path: Path
) -> None:
    """A run, its rows in batches of another size, and the measures the run itself took at its end."""
    rows, path = 12, str(tiny_run)
    found = evaluate_paths([path], str(tiny_world / "corpus" / "validation"), str(tiny_world / "teacher"), rows)[path]
    log = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    last = next(row["metrics"] for row in log if row["kind"] == "validation" and row["step"] == 2)
    student = load_language_model(path)
    assert found.pop("parameters") == sum(leaf.size for leaf in jax.tree.leaves(student.params))
    assert last.pop("cosine") > 0, "a term of the run's objective, which an evaluation of folders has not"
    assert found == pytest.approx(last, rel=1e-5)
    assert found["predictions"] == predictions_of(corpus, rows)


def test_models_that_do_not_fit_the_rows_are_refused(corpus: Corpus, teacher: LanguageModel, tmp_path: Path) -> None:
    stranger = dataclasses.replace(teacher, tokenizer=dataclasses.replace(teacher.tokenizer, sha256="0" * 64))
    with pytest.raises(UserError, match="another vocabulary than the model's"):
        evaluate_model(stranger, corpus)
    with pytest.raises(UserError, match="another vocabulary than the teacher's"):
        evaluate_model(teacher, corpus, teacher=stranger)
    short = dataclasses.replace(teacher, encoder=dataclasses.replace(teacher.encoder, max_position_embeddings=16))
    with pytest.raises(UserError, match="rows of 24 tokens, but the model has 16 positions"):
        evaluate_model(short, corpus)


def test_what_has_no_head_is_refused(model_folder: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no masked-language-model head"):
        load_language_model(model_folder(head=False))
    with pytest.raises(UserError, match="nowhere"):
        load_language_model(str(tmp_path / "nowhere"))


def test_a_run_below_the_home_folder(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny_run.parent))
    found, wanted = load_language_model(f"~/{tiny_run.name}"), load_language_model(str(tiny_run))
    jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)


def test_fill_mask_gives_the_answers_of_transformers(tiny_world: Path, teacher: LanguageModel) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

    model = AutoModelForMaskedLM.from_pretrained(tiny_world / "teacher")
    reference: Any = pipeline("fill-mask", model=model, tokenizer=AutoTokenizer.from_pretrained(tiny_world / "teacher"))
    for text in ("the cat sat on a [MASK].", "[MASK] dog walks home", "zebra [MASK], Red FISH [mask]"):
        expected = [(row["token_str"], row["score"]) for row in reference(text, top_k=5)]
        found = fill_mask(teacher, text, top=5)
        assert [token for token, _ in found] == [token for token, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected], abs=1e-5)
    with pytest.raises(UserError, match=r"has no \[MASK\]"):
        fill_mask(teacher, "nothing to fill in")
    length = teacher.encoder.max_length
    with pytest.raises(UserError, match=f"{length} positions"):
        fill_mask(teacher, "[MASK] " + length * "the ")
