"""The model card says what was done, and nothing that was not."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import yaml

from distil_jax.config import Config, with_overrides
from distil_jax.export.card import curves_picture, model_card, public_name
from distil_jax.models import EncoderConfig

ENCODER = EncoderConfig("distilbert", 1234, 48, 3, 4, 96, 64)
MEASURES = {"mlm_loss": 4.5, "perplexity": 90.0, "accuracy": 0.25, "kl": 1.5, "agreement": 0.3, "predictions": 1200.0}
DISTILLED = {"stage": "distill", "teacher": "models/big", "layers": [0, 2, 4]}


def card(
    description: dict[str, Any],
    evaluations: dict[int, dict[str, float]] | None = None,
    step: int = 20,
    changes: dict[str, Any] | None = None,
    corpus: dict[str, Any] | None = None,
    encoder: EncoderConfig = ENCODER,
) -> str:
    metadata = {
        "description": description,
        "steps": 30,
        "corpus": {"sources": ["books.txt"], "rows": 5000, "tokens": 123456, "sha256": "ab" * 32, "sequence_length": 64}
        | (corpus or {}),
        "evaluations": evaluations or {},
    }
    settings = {"training.batch_size": 32, "corpus.sequence_length": 64, **(changes or {})}
    return model_card(with_overrides(Config(), settings), encoder, metadata, step, "small")


def test_it_states_teacher_data_steps_and_losses() -> None:
    text = card(DISTILLED, changes={"optimizer.learning_rate": 3e-4, "run.seed": 7})
    for said in (
        "Student of `big`, started from its layers 0, 2, 4.",
        "distilbert, 3 layers, width 48, 4 heads, feed-forward 96, vocabulary 1234, 64 positions",
        "step 20 of 30, 32 rows of up to 64 tokens a step, peak learning rate 0.0003, seed 7",
        f"`books.txt`; 5,000 rows, 123,456 tokens, sha256 {'ab' * 32}",
        "5 kl + 2 mlm + 1 cosine; temperature 2, kl over all positions",
        'AutoModelForMaskedLM.from_pretrained("small")',
    ):
        assert said in text, said
    assert "Held-out" not in text


def test_pruned_heads_are_not_for_transformers() -> None:
    text = card(DISTILLED, encoder=dataclasses.replace(ENCODER, num_heads=3, head_size=12))
    assert "transformers has no form for 3 heads of width 12" in text and "library_name: distil_jax" in text
    assert "AutoModel" not in text and 'from_pretrained("small")' in text


def test_rows_are_as_long_as_those_of_the_corpus() -> None:
    assert "rows of up to 128 tokens a step" in card(DISTILLED, corpus={"sequence_length": 128})


def test_the_front_matter_is_what_the_hub_reads() -> None:
    _, front, body = card(DISTILLED).split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["distil_jax", "knowledge-distillation"],
    }
    assert body.startswith("# small\n")


def test_measures_are_those_of_the_exported_step() -> None:
    evaluations = {
        step: {name: value + step for name, value in MEASURES.items()} | {"predictions": 1200.0}
        for step in (0, 10, 20, 30)
    }
    text = card(DISTILLED, evaluations, step=25)
    assert "| | step 0 | step 20 |" in text
    assert "| masked-token loss (nats) | 4.5000 | 24.5000 |" in text
    assert "| agreement with the teacher | 0.3000 | 20.3000 |" in text
    assert "Over 1,200 predicted positions" in text
    without = {
        step: {k: v for k, v in row.items() if k not in ("kl", "agreement")} for step, row in evaluations.items()
    }
    assert "KL" not in card(DISTILLED, without)


@pytest.mark.parametrize(
    ("initial", "frozen", "said"),
    [
        ("", False, "Masked language model trained from scratch."),
        ("models/old", False, "Masked language model trained from `old`."),
        ("/home/me/models/old", True, "Masked language model trained from `old`, encoder frozen."),
    ],
)
def test_a_pretrained_model_claims_no_teacher(initial: str, frozen: bool, said: str) -> None:
    text = card({"stage": "pretrain", "initial": initial, "frozen_encoder": frozen})
    assert said in text
    assert "- loss: masked-LM cross entropy\n" in text
    assert "distillation" not in text
    assert "temperature" not in text


def test_a_student_without_its_teachers_losses_claims_no_temperature() -> None:
    text = card(DISTILLED, changes={"objective.kl": 0.0, "objective.cosine": 0.0})
    assert "- loss: 2 mlm\n" in text
    assert "distillation" not in text


def test_where_the_student_started() -> None:
    text = card(DISTILLED, changes={"student.init": "random"})
    assert "Student of `big`, started from random weights." in text
    assert "layers 0, 2, 4" not in text
    assert "started from `half`." in card(DISTILLED, changes={"student.init": "models/half"})


def test_narrowed_positions_are_told() -> None:
    text = card(DISTILLED, changes={"objective.restrict_kl_to_mask": True, "objective.logit_mse": 0.5})
    assert "5 kl + 2 mlm + 1 cosine + 0.5 logit_mse; temperature 2, kl and logit_mse over predicted positions" in text


def test_paths_of_this_machine_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distil_jax.export.card.is_in_hub_cache", lambda name: name == "google-bert/bert-base-uncased")
    names = ("google-bert/bert-base-uncased", "hf:wikimedia/wikipedia:20231101.en", "tfds:glue/sst2")
    assert tuple(map(public_name, names)) == names
    assert [public_name(path) for path in ("/home/me/bert", "a/b/", "text/*.txt", ".")] == ["bert", "b", "*.txt", "."]
    sources = {"sources": ["/home/me/text/books.txt", "hf:a/b"]}
    text = card(DISTILLED | {"teacher": "/home/me/big"}, corpus=sources)
    assert "/home" not in text and "`books.txt`, `hf:a/b`" in text


def test_the_curves_are_those_until_the_exported_step() -> None:
    evaluations = {step: {**MEASURES, "kl": 9.0 - step} for step in (0, 10, 20)} | {5: {**MEASURES, "kl": math.nan}}
    drawn = curves_picture({"evaluations": evaluations}, 10)
    assert drawn.count("<polyline") == len(MEASURES) - 1, "a chart for each measure but the count"
    assert "KL to the teacher (nats), step 10" in drawn and "step 20" not in drawn and "nan" not in drawn
    assert "![held-out measures by step](curves.svg)" in card(DISTILLED, evaluations)
    assert curves_picture({"evaluations": {0: MEASURES}}, 10) == ""
    assert "curves.svg" not in card(DISTILLED, {0: MEASURES})
