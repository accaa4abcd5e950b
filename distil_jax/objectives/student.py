"""The student: fewer layers or narrower ones, started from the teacher's own weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distil_jax.config import Student
from distil_jax.errors import UserError
from distil_jax.hf import student_encoder_config
from distil_jax.models import EncoderConfig
from distil_jax.objectives.compared import layer_pairs


def spread_layers(teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """Evenly spread teacher layers, the first and the last among them: (12, 6) -> 0, 2, 4, 7, 9, 11 as the original."""
    return tuple(int(layer) for layer in np.rint(np.linspace(0, teacher_layers - 1, student_layers)))


def skip_layers(teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """Every nth teacher layer, the last among them: (12, 6) -> 1, 3, 5, 7, 9, 11 (PKD-Skip, Sun et al. 2019).

    Their outputs are what `layer_pairs` compares with the student's.
    """
    return tuple(teacher - 1 for _, teacher in layer_pairs((), student_layers, teacher_layers))


def lower_layers(teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """The lowest teacher layers: (12, 6) -> 0, 1, 2, 3, 4, 5."""
    del teacher_layers
    return tuple(range(student_layers))


_CHOICES = {"spread": spread_layers, "skip": skip_layers, "lower": lower_layers}


def start_layers(settings: Student, teacher_layers: int) -> tuple[int, ...]:
    """The teacher's layers that a student of these settings starts from.

    Raises:
        UserError: there are too few.
    """
    if settings.layers:
        return settings.layers
    count = settings.num_layers or -(-teacher_layers // 2)
    if count > teacher_layers:
        raise UserError(
            f"student.num_layers = {count}: {count} layers cannot be chosen among the teacher's {teacher_layers}"
        )
    return _CHOICES[settings.layer_choice](teacher_layers, count)


def student_sizes(settings: Student, teacher: EncoderConfig) -> dict[str, Any]:
    """Fields of `EncoderConfig` that the settings give another value than the teacher's.

    Raises:
        UserError: the heads do not divide the width.
    """
    sizes: dict[str, Any] = {"num_layers": settings.num_layers or len(settings.layers) or -(-teacher.num_layers // 2)}
    if width := settings.hidden_size:
        heads = settings.num_heads or max(width // teacher.head_width, 1)
        inner = round(width * teacher.intermediate_size / teacher.hidden_size)
        sizes |= {"hidden_size": width, "num_heads": heads, "intermediate_size": inner}
    others = ("num_heads", "intermediate_size", "embedding_size")
    sizes |= {name: x for name in others if (x := getattr(settings, name))}
    sizes |= {name: x for name in ("hidden_dropout", "attention_dropout") if (x := getattr(settings, name)) >= 0}
    if "num_heads" in sizes and teacher.head_size:
        sizes["head_size"] = 0  # the width over the heads, as of a model that was not pruned
    width, heads = (sizes.get(name, getattr(teacher, name)) for name in ("hidden_size", "num_heads"))
    if not sizes.get("head_size", teacher.head_size) and width % heads:
        raise UserError(f"student.hidden_size = {width} is not a multiple of student.num_heads = {heads}; set both")
    return sizes


def student_config(
    teacher: EncoderConfig, layers: Sequence[int], family: str = "", sizes: Mapping[str, Any] | None = None
) -> EncoderConfig:
    """Configuration of a student with one layer for each entry of `layers`.

    `family` "" is the usual one of the teacher's students; `sizes` are fields that are not the teacher's.

    Raises:
        UserError: a layer that the teacher does not have, or none; a family that cannot be made from the teacher's.
    """
    wrong = [layer for layer in layers if not 0 <= layer < teacher.num_layers]
    if wrong or not layers:
        raise UserError(
            f"student.layers: {list(layers)} names layers {wrong} but the teacher's are 0 to {teacher.num_layers - 1}"
        )
    return student_encoder_config(teacher, {**(sizes or {}), "num_layers": len(layers)}, family, "student.family")


def student_params(
    teacher_params: Mapping[str, Any],
    teacher: EncoderConfig,
    student: EncoderConfig,
    layers: Sequence[int],
    *,
    fold_token_type: bool = True,
) -> dict[str, Any]:
    """Parameters of the student, taken from the teacher's (DistilBERT, section 3, "student initialization").

    A narrower student gets the embeddings, in the directions of `principal_directions`, and nothing else; one with
    factorised embeddings also the matrix that maps them back. Of a narrower feed-forward part the neurons with the
    largest weights are left.

    Args:
        teacher_params: {"encoder", "mlm_head" where it has one} of the teacher, or those of an `Encoder`; float32.
        teacher: its configuration.
        student: from `student_config`.
        layers: teacher layer of each student layer.
        fold_token_type: add the teacher's segment-0 vector to the student's positions, so that the embedding output
            of a student without token types equals the teacher's on single sequences (the original drops it).

    Raises:
        UserError: the student is wider than the teacher, or has other heads than one whose heads were pruned.
    """
    for name in ("hidden_size", "intermediate_size", "embedding_width"):
        given, largest = getattr(student, name), getattr(teacher, name)
        if given > largest:
            setting = name.replace("width", "size")
            raise UserError(f"student.{setting} = {given}: above the teacher's {largest}; set student.init = random")
    source = teacher_params.get("encoder", teacher_params)
    embeddings = {name: dict(tensor) for name, tensor in source["embeddings"].items()}
    if not student.type_vocab_size and (token_type := embeddings.pop("token_type", None)) and fold_token_type:
        position = embeddings["position"]["embedding"]
        embeddings["position"] = {"embedding": position + np.asarray(token_type["embedding"])[:1]}
    narrower = student.hidden_size < teacher.hidden_size
    if not narrower and student.attention_width != teacher.attention_width:
        raise UserError(
            f"student.num_heads = {student.num_heads}: the teacher has {teacher.num_heads} heads of width "
            f"{teacher.head_width}, as others were pruned; leave it out, or set student.init = random"
        )
    if student.embedding_width < teacher.embedding_width:
        embeddings = _reduced(embeddings, student.embedding_width, factorised=not narrower)
    elif narrower:
        embeddings.pop("project", None)
    if narrower:
        return {"encoder": {"embeddings": embeddings}}
    shared = {"relative_positions"} & source.keys() if student.num_heads == teacher.num_heads else ()
    encoder: dict[str, Any] = {"embeddings": embeddings, **{name: source[name] for name in shared}}
    for index, layer in enumerate(layers):
        encoder[f"layer_{index}"] = _narrowed(source[f"layer_{layer}"], student.intermediate_size)
    same = student.embedding_width == teacher.embedding_width
    heads = {name: teacher_params[name] for name in ("mlm_head",) if same and name in teacher_params}
    return {"encoder": encoder, **heads}


def _reduced(embeddings: Mapping[str, Any], width: int, *, factorised: bool) -> dict[str, Any]:
    """Embeddings [., width] in their principal directions, without their norm.

    If `factorised`, "project" maps them back to the width that the teacher's have.
    """
    directions = principal_directions(embeddings["word"]["embedding"], width)
    tables = {name: x["embedding"] @ directions for name, x in embeddings.items() if "embedding" in x}
    reduced: dict[str, Any] = {name: {"embedding": table} for name, table in tables.items()}
    if factorised:
        further = embeddings.get("project") or {"kernel": np.eye(len(directions), dtype=np.float32)}
        back = directions.T @ np.asarray(further["kernel"])
        bias = np.asarray(further.get("bias", np.zeros(back.shape[1], np.float32)))
        reduced["project"] = {"kernel": back, "bias": bias}
    return reduced


def principal_directions(table: np.ndarray, width: int) -> np.ndarray:
    """The directions in which the rows of a table [V, H] are best kept: orthonormal columns [H, width] float32.

    Those of the largest second moments (PCA without centring: a projection has no offset to add the mean again). The
    largest entry of a column is positive.
    """
    rows = np.asarray(table, np.float64)
    columns = np.linalg.eigh(rows.T @ rows)[1][:, : -width - 1 : -1]
    largest = np.take_along_axis(columns, np.abs(columns).argmax(axis=0, keepdims=True), axis=0)
    return np.ascontiguousarray(columns * np.sign(largest), np.float32)


def _narrowed(layer: Mapping[str, Any], inner: int) -> Mapping[str, Any]:
    """A layer whose feed-forward part keeps `inner` neurons, in their order."""
    into, out = layer["ffn_in"], layer["ffn_out"]
    if inner == into["kernel"].shape[1]:
        return layer
    importance = np.linalg.norm(into["kernel"], axis=0) * np.linalg.norm(out["kernel"], axis=1)
    kept = np.sort(np.argsort(-importance, kind="stable")[:inner])
    return {
        **layer,
        "ffn_in": {"kernel": np.asarray(into["kernel"])[:, kept], "bias": np.asarray(into["bias"])[kept]},
        "ffn_out": {**out, "kernel": np.asarray(out["kernel"])[kept]},
    }
