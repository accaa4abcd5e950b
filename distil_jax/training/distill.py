"""Distillation: a student of the configured teacher, trained on text by the configured loss terms."""

from __future__ import annotations

from distil_jax.config import Config, require
from distil_jax.errors import UserError
from distil_jax.models import EncoderConfig
from distil_jax.objectives import (
    check_terms,
    every_other_layer,
    initial_projections,
    student_config,
    student_params,
    uses_vocabulary,
)
from distil_jax.runs import Watchdog, fingerprint
from distil_jax.training.loop import TrainResult
from distil_jax.training.step import Params
from distil_jax.training.text_run import (
    TextTraining,
    check_vocabulary,
    completed,
    matching_tokenizer,
    open_corpora,
    pooling_fact,
    read_model,
    train_on_text,
)

# Everything of an EncoderConfig that decides what its parameters mean.
_SIZES = (
    *("family", "vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size"),
    *("max_position_embeddings", "position_offset", "type_vocab_size", "activation"),
)


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
        training = distillation(config, teacher, teacher_params)
        inputs = {"teacher.path": fingerprint(teacher_params)}
        return train_on_text(config, watchdog, training, corpora, tokenizer, inputs)


def distillation(config: Config, teacher: EncoderConfig, teacher_params: Params) -> TextTraining:
    """What `distill` trains: the student that `config` makes of this teacher.

    Raises:
        UserError: the teacher lacks what a loss term reads, or student and teacher cannot be compared.
    """
    layers = config.student.layers or every_other_layer(teacher.num_layers)
    encoder = student_config(teacher, layers, config.student.family)
    with_head = uses_vocabulary(config.objective)
    if with_head and "mlm_head" not in teacher_params:
        raise UserError(
            f"teacher.path = {config.teacher.path}: has no masked-language-model head; give it one with "
            "`distil-jax pretrain --model.initial ... --model.freeze-encoder`, or choose terms without one "
            "(objective.hidden, with objective.kl and objective.mlm = 0)"
        )
    check_terms(config.objective, encoder, teacher)
    projections = initial_projections(config.objective, encoder, teacher, config.run.seed)
    return TextTraining(
        encoder=encoder,
        params={**_student_start(config, teacher, teacher_params, encoder, layers), **projections},
        trainable=("encoder", *(["mlm_head"] if with_head else []), *projections),
        objective=config.objective,
        teacher=teacher,
        teacher_params=teacher_params,
        description={
            "stage": "distill",
            "teacher": config.teacher.path,
            "layers": list(layers),
            **pooling_fact(config.teacher.path),
        },
    )


def initial_student(config: Config) -> tuple[EncoderConfig, Params]:
    """The student that `distill` starts from, before any step."""
    training = distillation(config, *read_model(config.teacher.path))
    return training.encoder, completed(training, config.run.seed)


def _student_start(
    config: Config, teacher: EncoderConfig, teacher_params: Params, encoder: EncoderConfig, layers: tuple[int, ...]
) -> Params:
    """Where the student starts, without the parts that start from random values."""
    settings = config.student
    if settings.init == "random":
        return {}
    if settings.init == "teacher":
        start = student_params(teacher_params, teacher, encoder, layers, fold_token_type=settings.fold_token_type)
        return start if settings.copy_mlm_head else {"encoder": start["encoder"]}
    found, params = read_model(settings.init)
    for field in _SIZES:
        if getattr(found, field) != getattr(encoder, field):
            raise UserError(
                f"student.init = {settings.init}: its {field} is {getattr(found, field)}, "
                f"that of the student of {config.teacher.path} is {getattr(encoder, field)}"
            )
    if "mlm_head" not in params and uses_vocabulary(config.objective):
        raise UserError(f"student.init = {settings.init}: has no masked-language-model head")
    return params
