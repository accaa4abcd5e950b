"""Labels, problem and dropout of a task head in config.json, against transformers' configuration classes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import transformers

from distil_jax.errors import UserError
from distil_jax.hf import (
    encoder_config_from_hf,
    encoder_config_to_hf,
    task_head,
    task_head_from_hf,
    task_head_to_hf,
)

BERT: dict[str, Any] = {"model_type": "bert", "hidden_dropout_prob": 0.3}
DISTILBERT: dict[str, Any] = {"model_type": "distilbert", "dropout": 0.3}


def head_of(raw: dict[str, Any], kind: Any = "sequence") -> Any:
    return task_head_from_hf(encoder_config_from_hf(raw, "x/config.json"), raw, kind, "x/config.json")


@pytest.mark.parametrize(
    ("raw", "kind", "rate", "dense"),
    [
        (BERT, "sequence", 0.3, False),
        (BERT | {"classifier_dropout": None}, "choice", 0.3, False),
        (BERT | {"classifier_dropout": 0.25}, "sequence", 0.25, False),
        (BERT | {"classifier_dropout": 0}, "token", 0.0, False),
        (BERT | {"classifier_dropout": 0.25}, "question", 0.0, False),
        (DISTILBERT, "sequence", 0.2, True),
        (DISTILBERT | {"seq_classif_dropout": 0.25}, "choice", 0.25, True),
        (DISTILBERT | {"seq_classif_dropout": 0.25}, "token", 0.3, False),
        (DISTILBERT, "question", 0.1, False),
        (DISTILBERT | {"qa_dropout": 0.25}, "question", 0.25, False),
    ],
)
def test_dropout_and_dense_layer(raw: dict[str, Any], kind: str, rate: float, dense: bool) -> None:
    head = head_of(raw, kind)
    assert (head.kind, head.dropout, head.dense) == (kind, rate, dense)


def test_the_rates_are_those_of_transformers_own_modules() -> None:
    small: Any = {"dim": 4, "n_heads": 2, "hidden_dim": 4, "n_layers": 1, "vocab_size": 9, "max_position_embeddings": 4}
    config = transformers.DistilBertConfig(**small, dropout=0.3, qa_dropout=0.4, seq_classif_dropout=0.5)
    for kind, name in (
        ("sequence", "SequenceClassification"),
        ("token", "TokenClassification"),
        ("question", "QuestionAnswering"),
        ("choice", "MultipleChoice"),
    ):
        expected: Any = getattr(transformers, f"DistilBertFor{name}")(config)
        assert head_of(config.to_dict(), kind).dropout == expected.dropout.p


@pytest.mark.parametrize(
    ("fields", "labels", "outputs"),
    [
        ({"id2label": {"0": "no", "1": "yes"}}, ("no", "yes"), 2),
        ({"id2label": {"2": "c", "0": "a", "1": "b"}}, ("a", "b", "c"), 3),
        ({"id2label": {str(i): f"L{i}" for i in reversed(range(12))}}, tuple(f"L{i}" for i in range(12)), 12),
        ({"label2id": {"yes": 1, "no": 0}}, ("no", "yes"), 2),
        ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2"), 3),
        ({}, ("LABEL_0", "LABEL_1"), 2),
        ({"id2label": {"0": 3, "1": 1, "2": 2.5}}, ("3", "1", "2.5"), 3),
        ({"id2label": {"0": True, "1": False, "2": None}}, ("True", "False", "None"), 3),
        ({"id2label": {"0": "a", "1": "a", "2": "a (1)", "3": "a"}}, ("a", "a (1)", "a (1) (2)", "a (3)"), 4),
        ({"id2label": {"0": 1, "1": "1"}}, ("1", "1 (1)"), 2),
        ({"id2label": {"0": "", "1": " "}}, ("LABEL_0", "LABEL_1"), 2),
        ({"id2label": {"0": "LABEL_0"}, "problem_type": "regression"}, (), 1),
        ({"id2label": {"0": "similarity"}, "problem_type": "regression"}, ("similarity",), 1),
        ({"num_labels": 2, "problem_type": "regression"}, (), 2),
    ],
)
def test_labels_are_in_the_order_of_their_numbers(
    fields: dict[str, Any], labels: tuple[str, ...], outputs: int
) -> None:
    head = head_of(BERT | fields)
    assert (head.labels, head.num_outputs, head.problem) == (labels, outputs, fields.get("problem_type", ""))


def test_questions_and_choices_have_no_labels() -> None:
    raw = BERT | {"id2label": {"0": "a", "1": "b", "2": "c"}}
    assert (head_of(raw, "question").labels, head_of(raw, "question").num_outputs) == ((), 2)
    assert (head_of(raw, "choice").labels, head_of(raw, "choice").num_outputs) == ((), 1)
    assert head_of(raw | {"problem_type": "regression"}, "token").problem == ""


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, "no label 1"),
        ({"id2label": {"1": "a", "2": "b"}}, "no label 0"),
        ({"id2label": {}}, "no label 0"),
        ({"id2label": {"0": "a", "00": "b"}}, "the number 0 twice"),
        ({"id2label": {"0": "a", "1": ["b"]}}, "label 1 is ['b']"),
        ({"id2label": {"0": {"a": 1}, "1": "b"}}, "label 0 is"),
        ({"id2label": {"0": "a", "one": "b"}}, 'the number "one"'),
        ({"id2label": {"-1": "a"}}, 'the number "-1"'),
        ({"id2label": ["a", "b"]}, "id2label = ['a', 'b']"),
        ({"label2id": {"a": 0, "b": 0}}, "label2id has the number 0 twice"),
        ({"label2id": {"a": True}}, "the number true"),
        ({"num_labels": 10**12}, "num_labels = 1000000000000"),
        ({"num_labels": 0}, "num_labels = 0"),
        ({"num_labels": "3"}, "num_labels = '3'"),
        ({"problem_type": "ranking"}, 'problem_type = "ranking"'),
        ({"problem_type": ["regression"]}, "problem_type = ['regression']"),
        ({"num_labels": 1, "problem_type": "single_label_classification"}, "with one label"),
        ({"classifier_dropout": 1.5}, "classifier_dropout = 1.5"),
        ({"classifier_dropout": "0.1"}, 'classifier_dropout = "0.1"'),
    ],
)
def test_what_cannot_be_a_head_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as caught:
        head_of(BERT | fields)
    message = str(caught.value)
    assert named in message
    assert message.startswith("x/config.json: ")
    assert "\n" not in message and len(message) < 200


@pytest.mark.parametrize(
    ("kind", "given", "named"),
    [
        ("sequence", {}, "needs labels, or num_labels"),
        ("token", {"labels": "O"}, 'is the text "O"'),
        ("token", {"labels": ["O", "O"]}, '"O" is there twice'),
        ("token", {"labels": ["O", 3]}, "label 1 is 3"),
        ("sequence", {"labels": ["a", "b"], "num_outputs": 3}, "num_labels = 3, but there are 2 labels"),
        ("sequence", {"num_outputs": 1 << 40}, "num_labels = 1099511627776"),
        ("sequence", {"num_outputs": -2}, "num_labels = -2"),
        ("sequence", {"num_outputs": 2, "problem": "ranking"}, "problem = 'ranking'"),
        ("token", {"num_outputs": 2, "problem": "regression"}, "only sequence heads"),
        ("sequence", {"num_outputs": 1, "problem": "single_label_classification"}, "with one label"),
        ("question", {"labels": ["start", "end"]}, "has 2 outputs without names"),
        ("choice", {"num_outputs": 4}, "has 1 output without"),
        ("ranking", {}, "'ranking' is no task head"),
    ],
)
def test_a_wanted_head_is_checked(kind: Any, given: dict[str, Any], named: str) -> None:
    config = encoder_config_from_hf(BERT, "here")
    with pytest.raises(UserError) as caught:
        task_head(config, BERT, kind, **given)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_a_wanted_head_has_transformers_defaults() -> None:
    config = encoder_config_from_hf(DISTILBERT, "here")
    head = task_head(config, None, "sequence", problem="regression")
    assert (head.num_outputs, head.labels, head.dropout, head.dense) == (1, (), 0.2, True)
    assert task_head(config, None, "choice").num_outputs == 1
    assert task_head(config, {"qa_dropout": 0.0}, "question").dropout == 0.0
    assert task_head(config, None, "token", ["O", "B"]).dropout == 0.3


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("kind", ["sequence", "token", "question", "choice"])
def test_there_and_back(family: str, kind: Any) -> None:
    raw = BERT | {"classifier_dropout": 0.45} if family == "bert" else DISTILBERT | {"seq_classif_dropout": 0.45}
    config = encoder_config_from_hf(raw, "here")
    labels = [f"L{i}" for i in range(12)] if kind in ("sequence", "token") else []
    head = task_head(config, raw, kind, labels, "multi_label_classification" if kind == "sequence" else "")
    written = json.loads(json.dumps(encoder_config_to_hf(config, kind) | task_head_to_hf(config, head)))
    assert head_of(written, kind) == head
    (name,) = written["architectures"]
    expected = getattr(transformers, name).config_class.from_dict(written)
    assert list(expected.id2label.values()) == (labels or ["LABEL_0", "LABEL_1"])
    assert expected.problem_type == (head.problem or None)


def test_the_usual_dropout_is_written_as_transformers_writes_it() -> None:
    config = encoder_config_from_hf(BERT, "here")
    assert task_head_to_hf(config, task_head(config, BERT, "token", ["O", "B"]))["classifier_dropout"] is None


def test_a_head_of_the_other_family_is_not_written() -> None:
    bert, distilbert = (encoder_config_from_hf(raw, "here") for raw in (BERT, DISTILBERT))
    with pytest.raises(UserError, match="bert folder cannot hold a sequence head with a dense layer and relu"):
        task_head_to_hf(bert, task_head(distilbert, None, "sequence", ["a", "b"]))
    with pytest.raises(UserError, match="distilbert folder cannot hold a choice head with no dense layer"):
        task_head_to_hf(distilbert, task_head(bert, None, "choice"))
