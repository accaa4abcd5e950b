"""config.json <-> `EncoderConfig`, by the fields of its family."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distil_jax.errors import UserError, shown
from distil_jax.hf.families import FAMILIES, Family, family_named, find_family
from distil_jax.hf.fields import Fields, read_json
from distil_jax.hf.hub import locate

if TYPE_CHECKING:
    from distil_jax.hf.families import Head
    from distil_jax.models import EncoderConfig

HEAD_SIZE = "attention_head_size"  # own field of models with pruned heads, which transformers has no form for
# Dropout rates have no influence on what a trained model computes, so a folder may do without them.
_TRAINING_ONLY = ("hidden_dropout", "attention_dropout", "attention_output_dropout")


def encoder_config_from_hf(raw: Mapping[str, Any], where: str) -> EncoderConfig:
    """The configuration in a config.json.

    Fields that are absent have transformers' defaults (those of the base model); fields that do not change what is
    computed, `auto_map` among them, are passed over: no code of the folder is ever run.

    Args:
        raw: the parsed config.json.
        where: its path, for messages.

    Raises:
        UserError: a field is out of bounds or asks for something that is not computed here.
    """
    from distil_jax.models import EncoderConfig

    family, _ = find_family(raw, where)
    _refuse_what_is_not_computed(raw, where)
    for name, value in family.required.items():
        if raw.get(name, value) != value:
            raise UserError(
                f"{where}: {name} = {shown(raw[name])} is not supported for {family.name}, only {shown(value)}"
            )
    fields = Fields(raw, where)
    values = {name: fields.encoder_value(name, field) for name, field in family.fields.items()}
    head_size = fields.size(HEAD_SIZE, 0, 0, values["hidden_size"])
    values["head_size"] = 0 if head_size * values["num_heads"] == values["hidden_size"] else head_size
    same = {name: 0 for name, field in family.fields.items() if field.same_as and values[name] == values[field.same_as]}
    config = _completed(family, EncoderConfig(family.name, **{**values, **same}))
    if config.max_length < 1:
        raise UserError(f"{where}: max_position_embeddings = {values['max_position_embeddings']} leaves no position")
    if not config.head_size and config.hidden_size % config.num_heads:
        raise UserError(f"{where}: hidden size {config.hidden_size} is not a multiple of the {config.num_heads} heads")
    if config.pad_token_id >= config.vocab_size:
        raise UserError(f"{where}: pad_token_id = {config.pad_token_id}, not below vocab_size {config.vocab_size}")
    return config


def _completed(family: Family, config: EncoderConfig) -> EncoderConfig:
    """`config` with the fields that follow from its family."""
    return dataclasses.replace(config, **family.implied(config))


def _refuse_what_is_not_computed(raw: Mapping[str, Any], where: str) -> None:
    """Settings under which the same weights mean another function than here."""
    kind = raw.get("position_embedding_type") or "absolute"
    if kind != "absolute":
        raise UserError(f"{where}: position_embedding_type = {shown(kind)} is not supported, only 'absolute'")
    for name, why in (
        ("is_decoder", "causal models are not supported, only encoders"),
        ("add_cross_attention", "only plain encoders are supported"),
        ("quantization_config", "only plain float weights can be read"),
        ("pruned_heads", "models with pruned attention heads are not supported"),
    ):
        if raw.get(name):
            raise UserError(f"{where}: {name} = {shown(raw[name])}; {why}")


def encoder_config_to_hf(config: EncoderConfig, head: Head) -> dict[str, Any]:
    """The config.json that transformers expects for this encoder under a head.

    A task head's own fields (its labels and dropout) are not among them, see `task_head_to_hf`. Dropout rates that the
    family has no field for are not written.

    Raises:
        UserError: the family cannot express this configuration (its numbers would come out differently).
    """
    family = family_named(config.family)
    reason = misfit(family, config)
    if reason:
        raise UserError(f"a {family.class_prefix} folder cannot hold this model: {reason}")
    written = {field.name: getattr(config, name) for name, field in family.fields.items()}
    equal = {field.name: getattr(config, field.same_as) for field in family.fields.values() if field.same_as}
    written |= {name: value for name, value in equal.items() if not written[name]}
    common = {
        "architectures": [family.architecture(head)],
        "model_type": family.name,
        "dtype": "float32",
        "tie_word_embeddings": True,
    }
    own = {HEAD_SIZE: config.head_size} if config.head_size else {}
    return {**common, **family.constants, **family.required, **written, **own}


def refused_by_transformers(config: EncoderConfig) -> str:
    """Why transformers refuses a folder of this model; "" if it loads it."""
    if not config.head_size:
        return ""
    return f"transformers has no form for {config.num_heads} heads of width {config.head_size} and refuses this folder"


def misfit(family: Family, config: EncoderConfig) -> str:
    """Why transformers' models of this family cannot compute what `config` says; "" if they can."""
    if config.pooler and not family.has_pooler:
        return f"{family.class_prefix} has no pooler"
    if family.has_token_types and not config.type_vocab_size:
        return f"{family.class_prefix} needs token types (type_vocab_size of 1 or more)"
    for name, value in family.implied(config).items():
        found = getattr(config, name)
        if found != value and name not in _TRAINING_ONLY:
            return f"{family.class_prefix} has {name} = {value}, not {found}"
    return ""


def new_encoder_config(family_name: str, setting: str, **sizes: Any) -> EncoderConfig:
    """A model of a family from scratch: `sizes` are fields of `EncoderConfig`, the rest follows from the family.

    `max_position_embeddings` are the tokens of the longest row; what the family needs besides is added.

    Raises:
        UserError: no such family; the message names `setting`.
    """
    from distil_jax.models import EncoderConfig

    family = family_named(family_name, setting)
    absent = family.fields.keys() - sizes.keys()
    sizes = {name: family.fields[name].default for name in absent} | sizes
    config = _completed(family, EncoderConfig(family=family.name, **sizes))
    return dataclasses.replace(config, max_position_embeddings=config.max_position_embeddings + config.position_offset)


def student_encoder_config(
    teacher: EncoderConfig, sizes: Mapping[str, Any], family_name: str, setting: str
) -> EncoderConfig:
    """The teacher's encoder in a family, with other sizes and without pooler.

    A family without token types does without the teacher's: they can be added to its positions.

    Args:
        teacher: what the student learns from.
        sizes: fields of the student's configuration that are not the teacher's.
        family_name: of the student; "" for the teacher's usual one.
        setting: what messages call the family.

    Raises:
        UserError: no such family, or it cannot compute what the teacher computes.
    """
    own = family_named(teacher.family)
    family = family_named(family_name or own.student or own.name, setting)
    if sizes.get("embedding_size") and "embedding_size" not in family.fields:
        able = ", ".join(one.name for one in FAMILIES.values() if "embedding_size" in one.fields)
        raise UserError(f"{setting} = {family.name}: has no factorised embeddings; choose {able}, or no embedding_size")
    config = dataclasses.replace(teacher, family=family.name, pooler=False, **sizes)
    spared = {"type_vocab_size", *_TRAINING_ONLY}
    config = dataclasses.replace(config, **{k: v for k, v in family.implied(config).items() if k in spared})
    reason = misfit(family, config)
    if reason:
        raise UserError(f"{setting} = {family.name}: {reason} as its {own.name} teacher; choose {own.name}")
    return config


def read_encoder_config(path_or_id: str | Path) -> EncoderConfig:
    """The configuration of a model folder or hub id, from its config.json alone (so `pooler` is False).

    Raises:
        UserError: no such folder, or a config.json that cannot be used.
    """
    path = locate(path_or_id, files="config") / "config.json"
    return encoder_config_from_hf(read_json(path), str(path))
