"""The registry of families: which one a config.json belongs to, and that every family is whole."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from distil_jax.errors import UserError
from distil_jax.hf import FAMILIES
from distil_jax.hf.families import find_family, named_heads


@pytest.mark.parametrize("name", FAMILIES)
def test_its_classes_are_those_of_transformers(name: str) -> None:
    family = FAMILIES[name]
    for architecture in family.architectures:
        found: Any = getattr(transformers, architecture)
        assert (found.config_class.model_type, found.base_model_prefix) == (name, family.prefix)
    assert hasattr(transformers, family.tokenizer)
    assert (family.student or name) in FAMILIES


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"model_type": "roberta", "architectures": ["BertModel"]}, ("roberta", "model_type")),
        ({"architectures": ["XLMRobertaForMaskedLM"]}, ("xlm-roberta", "architectures")),
        ({"architectures": ["DistilBertModel"]}, ("distilbert", "architectures")),
        (dict.fromkeys(("dim", "n_layers", "n_heads", "hidden_dim", "vocab_size"), 4), ("distilbert", "")),
    ],
)
def test_the_family_of_a_config(raw: dict[str, Any], expected: tuple[str, str]) -> None:
    family, field = find_family(raw, "here")
    assert (family.name, field) == expected


def test_a_config_of_no_family_is_refused_by_name() -> None:
    for raw in ({"model_type": "t5"}, {"model_type": 5}, {"architectures": ["T5Model"]}, {}):
        with pytest.raises(UserError, match=r"^here: .*model_type.*known|^here: model_type is missing"):
            find_family(raw, "here")


def test_named_heads() -> None:
    assert named_heads({"architectures": ["BertForPreTraining", 3, "T5Model", "CamembertForMultipleChoice"]}) == [
        "mlm",
        "choice",
    ]
    assert named_heads({"architectures": "BertModel"}) == named_heads({}) == []
