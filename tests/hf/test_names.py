"""The tables against the names that transformers' own models have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from distil_jax.hf import FAMILIES, encoder_config_from_hf, task_head_from_hf
from distil_jax.hf.names import canonical, leaves, optional_names

OTHERS = [
    "RobertaForMaskedLM",
    "RobertaModel",
    "XLMRobertaForMaskedLM",
    "MPNetForMaskedLM",
    "MPNetModel",
    "ElectraForMaskedLM",
    "ElectraModel",
]


@pytest.mark.parametrize(
    "architecture", ["BertForMaskedLM", "BertModel", "DistilBertForMaskedLM", "DistilBertModel", *OTHERS]
)
def test_the_leaves_are_the_parameters_of_transformers(make_model: Callable[..., Any], architecture: str) -> None:
    model = make_model(architecture)
    config = encoder_config_from_hf(model.config.to_dict(), "config.json")
    head = architecture.endswith("MaskedLM")
    if architecture in ("BertModel", "RobertaModel", "MPNetModel"):
        config = type(config)(**{**vars(config), "pooler": True})
    prefix = FAMILIES[config.family].prefix
    found = leaves(config, mlm_head=head)
    actual = {leaf.stored_name(prefix) if head else leaf.name: leaf.shape for leaf in found}
    reference = {name: tuple(values.shape) for name, values in model.named_parameters(remove_duplicate=False)}
    assert actual == {name: shape for name, shape in reference.items() if name not in FAMILIES[config.family].tied}


@pytest.mark.parametrize("family", ["Bert", "DistilBert", "Roberta", "Camembert", "MPNet", "Electra"])
@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("SequenceClassification", "sequence"),
        ("TokenClassification", "token"),
        ("QuestionAnswering", "question"),
        ("MultipleChoice", "choice"),
    ],
)
def test_the_leaves_of_task_models(make_model: Callable[..., Any], family: str, task: str, kind: Any) -> None:
    count = {"num_labels": 7} if kind in ("sequence", "token") else {}
    model = make_model(f"{family}For{task}", **count)
    config = encoder_config_from_hf(model.config.to_dict(), "config.json")
    head = task_head_from_hf(config, model.config.to_dict(), kind, "config.json")
    found = list(leaves(config, task_head=head))
    actual = {leaf.stored_name(FAMILIES[config.family].prefix): leaf.shape for leaf in found}
    assert actual == {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert len({leaf.path for leaf in found}) == len(found)


def test_every_leaf_has_its_own_place(make_model: Callable[..., Any]) -> None:
    config = encoder_config_from_hf(make_model("BertForMaskedLM").config.to_dict(), "config.json")
    found = list(leaves(config, mlm_head=True))
    assert len({leaf.path for leaf in found}) == len({leaf.name for leaf in found}) == len(found)


@pytest.mark.parametrize(
    ("found", "family", "expected"),
    [
        ("bert.embeddings.LayerNorm.gamma", "bert", "embeddings.LayerNorm.weight"),
        ("distilbert.embeddings.LayerNorm.beta", "distilbert", "embeddings.LayerNorm.bias"),
        ("cls.predictions.transform.LayerNorm.beta", "bert", "cls.predictions.transform.LayerNorm.bias"),
        ("encoder.layer.0.output.dense.weight", "bert", "encoder.layer.0.output.dense.weight"),
        ("bert.pooler.gamma", "bert", "pooler.gamma"),
        ("distilbert.embeddings.word_embeddings.weight", "bert", "distilbert.embeddings.word_embeddings.weight"),
    ],
)
def test_canonical_names(found: str, family: str, expected: str) -> None:
    assert canonical(found, FAMILIES[family]) == expected


def test_which_names_are_left_out_without_a_note() -> None:
    bert, distilbert = optional_names("bert"), optional_names("distilbert")
    assert {"embeddings.position_ids", "cls.seq_relationship.weight", "pooler.dense.bias", "qa_outputs.bias"} <= bert
    assert {"pre_classifier.bias", "vocab_projector.weight", "vocab_transform.bias"} <= distilbert
    assert "pooler.dense.weight" not in distilbert
    assert bert.isdisjoint({"encoder.layer.0.adapter.weight", "classifier.weight.extra"})
