"""Distillation: a student of the configured teacher, trained on text by the configured loss terms."""

from __future__ import annotations

import dataclasses
from typing import Any

from distil_jax.config import Config, require
from distil_jax.errors import UserError
from distil_jax.hf import student_encoder_config
from distil_jax.models import EncoderConfig
from distil_jax.objectives import (
    PROJECTIONS,
    check_terms,
    initial_projections,
    principal_directions,
    start_layers,
    student_config,
    student_params,
    student_sizes,
    uses_vocabulary,
)
from distil_jax.runs import Watchdog, fingerprint, json_sha256
from distil_jax.training.loop import TrainResult
from distil_jax.training.step import Params
from distil_jax.training.teacher_cache import cache_facts, open_cache
from distil_jax.training.text_run import (
    TextTraining,
    check_vocabulary,
    fill_missing_params,
    matching_tokenizer,
    open_corpora,
    parameter_shapes,
    read_model,
    train_on_text,
    with_pooling,
)

# What of an EncoderConfig [student] can say.
_SIZES = ("num_layers", "hidden_size", "num_heads", "intermediate_size")


def distill(config: Config) -> TrainResult:
    """The finished run of a student of `teacher.path`; no term that compares with a teacher trains without it.

    Raises:
        UserError: settings, corpus, models or the run's folder do not fit each other; before anything is compiled.
    """
    require(config, "run.output", "corpus.folder", "teacher.path")
    with Watchdog(config) as watchdog:
        corpora = open_corpora(config)
        teacher, teacher_params = read_model(config.teacher.path)
        tokenizer = matching_tokenizer(config.corpus.tokenizer or config.teacher.path, corpora.train)
        check_vocabulary("teacher.path", teacher, corpora.train)
        training = with_pooling(distillation(config, teacher, teacher_params), config.teacher.path)
        inputs = {"teacher.path": fingerprint(teacher_params)}
        if config.teacher.cache:
            made_of = cache_facts(config, teacher, inputs["teacher.path"], corpora.train)
            cache = open_cache(config, made_of)
            training = dataclasses.replace(training, teacher=None, teacher_params=None, cache=cache)
            inputs["teacher.cache"] = json_sha256(made_of)
        return train_on_text(config, watchdog, training, corpora, tokenizer, inputs)


def distillation(config: Config, teacher: EncoderConfig, teacher_params: Params) -> TextTraining:
    """What `distill` trains: the student that `config` makes of this teacher.

    Raises:
        UserError: the teacher lacks what a loss term reads, or student and teacher cannot be compared.
    """
    encoder, start, description = _student(config, teacher, teacher_params)
    with_head = uses_vocabulary(config.objective)
    if with_head and "mlm_head" not in teacher_params:
        raise UserError(
            f"teacher.path = {config.teacher.path}: has no masked-language-model head; give it one with "
            "`distil-jax pretrain --model.initial ... --model.freeze-encoder`, or choose terms without one "
            "(objective.hidden, with objective.kl and objective.mlm = 0)"
        )
    check_terms(config.objective, encoder, teacher)
    directions, plain = None, all(one.embedding_width == one.hidden_size for one in (encoder, teacher))
    if plain and config.student.init == "teacher" and encoder.hidden_size < teacher.hidden_size:
        table = teacher_params["encoder"]["embeddings"]["word"]["embedding"]
        directions = principal_directions(table, encoder.hidden_size).T
    projections = initial_projections(config.objective, encoder, teacher, config.run.seed, directions)
    return TextTraining(
        encoder=encoder,
        params={**start, **projections},
        trainable=(*_trained_parts(config, encoder), *(["mlm_head"] if with_head else []), *projections),
        objective=config.objective,
        teacher=teacher,
        teacher_params=teacher_params,
        description={"stage": "distill", "teacher": config.teacher.path, **description},
    )


def _trained_parts(config: Config, encoder: EncoderConfig) -> tuple[str, ...]:
    if not config.student.freeze_embeddings:
        return ("encoder",)
    return tuple(f"encoder/{name}" for name in parameter_shapes(encoder)["encoder"] if name != "embeddings")


def initial_student(config: Config) -> tuple[EncoderConfig, Params]:
    """The student that `distill` starts from, before any step."""
    training = distillation(config, *read_model(config.teacher.path))
    params = fill_missing_params(training, config.run.seed)
    return training.encoder, {name: params[name] for name in params if name != PROJECTIONS}


def _student(
    config: Config, teacher: EncoderConfig, teacher_params: Params
) -> tuple[EncoderConfig, Params, dict[str, Any]]:
    """The student's encoder, where it starts, without what starts from random values, and what cards say of it."""
    settings = config.student
    if settings.init not in ("teacher", "random"):
        return *_student_of_folder(config, teacher), {"layers": []}
    sizes = student_sizes(settings, teacher)
    if settings.init == "random":
        return student_encoder_config(teacher, sizes, settings.family, "student.family"), {}, {"layers": []}
    layers = start_layers(settings, teacher.num_layers)
    encoder = student_config(teacher, layers, settings.family, sizes)
    start = student_params(teacher_params, teacher, encoder, layers, fold_token_type=settings.fold_token_type)
    if not settings.copy_mlm_head:
        start.pop("mlm_head", None)
    copied = list(layers) if "layer_0" in start["encoder"] else []
    return encoder, start, {"layers": copied}


def _student_of_folder(config: Config, teacher: EncoderConfig) -> tuple[EncoderConfig, Params]:
    """A student that another model folder brings, with its sizes."""
    settings = config.student
    encoder, params = read_model(settings.init)
    wanted = {name: x for name in _SIZES if (x := getattr(settings, name))} | {"vocab_size": teacher.vocab_size}
    if settings.layers:
        wanted["num_layers"] = len(settings.layers)
    for name, value in wanted.items():
        if getattr(encoder, name) != value:
            whose = f"that of {config.teacher.path}" if name == "vocab_size" else f"student.{name}"
            raise UserError(
                f"student.init = {settings.init}: its {name} is {getattr(encoder, name)}, {whose} is {value}"
            )
    if settings.family not in ("", encoder.family):
        raise UserError(f"student.init = {settings.init}: its family is {encoder.family}, not {settings.family}")
    if "mlm_head" not in params and uses_vocabulary(config.objective):
        raise UserError(f"student.init = {settings.init}: has no masked-language-model head")
    sizes = student_sizes(settings, encoder)
    return dataclasses.replace(encoder, **{name: x for name, x in sizes.items() if name.endswith("dropout")}), params
