"""The student: half the teacher's layers, started from the teacher's own weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distil_jax.errors import UserError
from distil_jax.hf import student_encoder_config
from distil_jax.models import EncoderConfig


def every_other_layer(teacher_layers: int, student_layers: int = 0) -> tuple[int, ...]:
    """Evenly spread teacher layers, the first and the last among them: (12, 6) -> 0, 2, 4, 7, 9, 11 as the original.

    `student_layers` 0 means half, rounded up.
    """
    count = student_layers or -(-teacher_layers // 2)
    if count > teacher_layers:
        raise UserError(f"student: {count} layers cannot be chosen among the teacher's {teacher_layers}")
    return tuple(int(layer) for layer in np.rint(np.linspace(0, teacher_layers - 1, count)))


def student_config(teacher: EncoderConfig, layers: Sequence[int], family: str = "") -> EncoderConfig:
    """Configuration of a student with one layer for each entry of `layers`, as wide as the teacher.

    `family` "" is the usual one of the teacher's students.

    Raises:
        UserError: a layer that the teacher does not have, or none; a family that cannot be made from the teacher's.
    """
    wrong = [layer for layer in layers if not 0 <= layer < teacher.num_layers]
    if wrong or not layers:
        raise UserError(
            f"student.layers: {list(layers)} names layers {wrong} but the teacher's are 0 to {teacher.num_layers - 1}"
        )
    return student_encoder_config(teacher, len(layers), family, "student.family")


def student_params(
    teacher_params: Mapping[str, Any],
    teacher: EncoderConfig,
    student: EncoderConfig,
    layers: Sequence[int],
    *,
    fold_token_type: bool = True,
) -> dict[str, Any]:
    """Parameters of the student, taken from the teacher's (DistilBERT, section 3, "student initialization").

    Args:
        teacher_params: {"encoder", "mlm_head" where it has one} of the teacher, float32.
        teacher: its configuration.
        student: from `student_config`.
        layers: teacher layer of each student layer.
        fold_token_type: add the teacher's segment-0 vector to the student's positions, so that the embedding output
            of a student without token types equals the teacher's on single sequences (the original drops it).
    """
    source = teacher_params["encoder"]
    embeddings = {name: dict(tensor) for name, tensor in source["embeddings"].items()}
    if not student.type_vocab_size and (token_type := embeddings.pop("token_type", None)) and fold_token_type:
        position = embeddings["position"]["embedding"]
        embeddings["position"] = {"embedding": position + np.asarray(token_type["embedding"])[:1]}
    encoder: dict[str, Any] = {"embeddings": embeddings}
    for index, layer in enumerate(layers):
        encoder[f"layer_{index}"] = source[f"layer_{layer}"]
    heads = {name: teacher_params[name] for name in ("mlm_head",) if name in teacher_params}
    return {"encoder": encoder, **heads}
