"""The model families: one value a file, registered here by its model_type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distil_jax.errors import UserError, shown
from distil_jax.hf.families.bert import BERT
from distil_jax.hf.families.distilbert import DISTILBERT
from distil_jax.hf.families.electra import ELECTRA
from distil_jax.hf.families.family import ConfigField, Family, HeadRule, TensorRule
from distil_jax.hf.families.mpnet import MPNET
from distil_jax.hf.families.roberta import CAMEMBERT, ROBERTA, XLM_ROBERTA

if TYPE_CHECKING:
    from distil_jax.hf.families.family import Head

FAMILIES: Mapping[str, Family] = {
    family.name: family for family in (BERT, DISTILBERT, ROBERTA, XLM_ROBERTA, CAMEMBERT, MPNET, ELECTRA)
}


def family_named(name: Any, setting: str = "family") -> Family:
    """The family of this name. Raises UserError, naming `setting`, where there is none."""
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"{setting} = {shown(name)} is not supported; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def find_family(raw: Mapping[str, Any], where: str) -> tuple[Family, str]:
    """The family of a config.json, and the field that says so: "model_type", "architectures", or "" for its sizes.

    Raises:
        UserError: none of the families is named, and the fields are those of none.
    """
    name = raw.get("model_type")
    if name is not None:
        return family_named(name, f"{where}: model_type"), "model_type"
    classes = architectures(raw)
    for family in FAMILIES.values():
        if any(name.startswith(family.class_prefix) for name in classes):
            return family, "architectures"
        if not classes and family.signature and family.signature <= raw.keys():
            return family, ""
    raise UserError(f"{where}: model_type is missing; give it one of {', '.join(FAMILIES)}")


def architectures(raw: Mapping[str, Any]) -> list[str]:
    """The class names of a config.json, an empty list if it has none."""
    names = raw.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def named_heads(raw: Mapping[str, Any]) -> list[Head]:
    """The heads that the architectures of a config.json have; those of classes that are not known are left out."""
    classes: dict[str, Head] = {}
    for family in FAMILIES.values():
        classes |= family.architectures
    return [classes[name] for name in architectures(raw) if name in classes]
