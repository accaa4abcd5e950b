"""The two stages of a run, from a configuration to a trained model: `pretrain` and `distill`.

Everything that a user can get wrong is looked at here, before anything is compiled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distil_jax.config import Config, CorpusSettings, Model, Objective, require
from distil_jax.config.fields import shown
from distil_jax.data.corpus import Corpus, open_corpus
from distil_jax.data.corpus.batches import batch_rows, stream_order, training_batches
from distil_jax.data.corpus.masking import MaskingRule, masking_log_weights
from distil_jax.errors import UserError
from distil_jax.hf import Tokenizer, load_tokenizer, new_encoder_config, read_pretrained
from distil_jax.models import EncoderConfig, MaskedLM
from distil_jax.models.flash_attention import this_device
from distil_jax.objectives import (
    every_other_layer,
    is_causal,
    needs_all_logits,
    student_config,
    student_params,
    uses_teacher,
)
from distil_jax.objectives.vocabulary_kernel import require_device
from distil_jax.runs import CONFIG_FILE, Watchdog, fingerprint, first_process_in, keep_model_file, open_run_folder
from distil_jax.training.evaluation import make_evaluator
from distil_jax.training.flops import distillation_flops, pretraining_flops
from distil_jax.training.loop import Evaluator, RunSpec, TrainResult, run_training
from distil_jax.training.parallel import Devices, check_batch, make_devices
from distil_jax.training.step import FrozenInputs, Params, StepConfig, make_train_step

# Everything of an EncoderConfig that decides what its parameters mean.
_COMPUTED = (
    *("family", "vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size"),
    *("max_position_embeddings", "type_vocab_size", "activation", "causal"),
)


@dataclasses.dataclass(frozen=True)
class Learner:
    """What a stage trains, and the teacher it learns from.

    `params` are those before the first step; what they lack ("encoder", "mlm_head") starts from random values.
    """

    encoder: EncoderConfig
    params: Params
    trainable: tuple[str, ...]
    objective: Objective
    teacher: EncoderConfig | None = None
    teacher_params: Params | None = None
    description: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def pretrain(config: Config) -> TrainResult:
    """Train a masked language model, from scratch or from `model.initial`; its encoder may stay frozen."""
    require(config, "run.output", "corpus.folder")
    with Watchdog(config) as watch:
        return _pretrain(config, watch)


def _pretrain(config: Config, watch: Watchdog) -> TrainResult:
    _check_kernel(config)
    corpora = _open_corpora(config)
    settings = config.model
    source = settings.initial or config.corpus.tokenizer
    if not source:
        raise UserError("corpus.tokenizer: name the tokenizer's folder or hub id, or give model.initial")
    tokenizer = _matching_tokenizer(config.corpus.tokenizer or source, corpora[0])
    if settings.initial:
        encoder, params = read_model(settings.initial)
        if encoder.causal:
            raise UserError(f"model.initial = {settings.initial}: is causal (is_decoder); masked models are not")
    else:
        encoder, params = scratch_encoder(settings, tokenizer.vocab_size, tokenizer.pad_id), {}
    learner = pretraining_learner(config, encoder, params)
    inputs = {"model.initial": fingerprint(params)} if settings.initial else {}
    return _train(config, watch, learner, corpora, tokenizer, inputs)


def distill(config: Config) -> TrainResult:
    """Train a student of `teacher.path`; with no loss that needs the teacher it is trained without it."""
    require(config, "run.output", "corpus.folder", "teacher.path")
    with Watchdog(config) as watch:
        return _distill(config, watch)


def _distill(config: Config, watch: Watchdog) -> TrainResult:
    _check_kernel(config)
    corpora = _open_corpora(config)
    teacher, teacher_params = read_model(config.teacher.path)
    if "mlm_head" not in teacher_params:
        raise UserError(
            f"teacher.path = {config.teacher.path}: has no masked-language-model head; give it one with "
            "`distil-jax pretrain --model.initial ... --model.freeze-encoder`"
        )
    tokenizer = _matching_tokenizer(config.corpus.tokenizer or config.teacher.path, corpora[0])
    _check_vocabulary("teacher.path", teacher, corpora[0])
    learner = distillation_learner(config, teacher, teacher_params)
    if is_causal(config.objective) != teacher.causal:
        raise UserError("objective.alpha_clm: goes with a causal teacher (is_decoder), and only with one")
    return _train(config, watch, learner, corpora, tokenizer, {"teacher.path": fingerprint(teacher_params)})


def pretraining_learner(config: Config, encoder: EncoderConfig, params: Params) -> Learner:
    """What `pretrain` trains: `params` of `model.initial`, or none for a model from scratch."""
    frozen = config.model.freeze_encoder
    return Learner(
        encoder=encoder,
        params=params,
        trainable=("mlm_head",) if frozen else ("encoder", "mlm_head"),
        objective=Objective(alpha_ce=0.0, alpha_cos=0.0, alpha_mlm=1.0, vocabulary=config.objective.vocabulary),
        description={"stage": "pretrain", "initial": config.model.initial, "frozen_encoder": frozen},
    )


def distillation_learner(config: Config, teacher: EncoderConfig, teacher_params: Params) -> Learner:
    """What `distill` trains: the student that `config` makes of this teacher."""
    layers = config.student.layers or every_other_layer(teacher.num_layers)
    encoder = student_config(teacher, layers, config.student.family)
    return Learner(
        encoder=encoder,
        params=_student_start(config, teacher, teacher_params, encoder, layers),
        trainable=("encoder", "mlm_head"),
        objective=config.objective,
        teacher=teacher,
        teacher_params=teacher_params,
        description={"stage": "distill", "teacher": config.teacher.path, "layers": list(layers)},
    )


def initial_student(config: Config) -> tuple[EncoderConfig, Params]:
    """The student that `distill` starts from, before any step."""
    teacher, teacher_params = read_model(config.teacher.path)
    learner = distillation_learner(config, teacher, teacher_params)
    return learner.encoder, _completed(learner.encoder, learner.params, config.run.seed)


def _train(
    config: Config,
    watch: Watchdog,
    learner: Learner,
    corpora: tuple[Corpus, Corpus | None],
    tokenizer: Tokenizer,
    inputs: Mapping[str, str],
) -> TrainResult:
    train, validation = corpora
    _check_vocabulary("model", learner.encoder, train)
    longest = max(corpus.sequence_length for corpus in corpora if corpus is not None)
    if longest > learner.encoder.max_length:
        raise UserError(
            f"corpus.folder = {config.corpus.folder}: rows of {longest} tokens, but the model has "
            f"{learner.encoder.max_length} positions; prepare with a smaller corpus.sequence_length"
        )
    devices = make_devices(config.parallel.mapping, config.parallel.devices)
    check_batch(config.training.batch_size, config.training.micro_batch_size, devices.count)
    steps = config.training.steps or (config.training.epochs * train.num_rows) // config.training.batch_size
    if steps == 0:
        raise UserError(
            f"training.epochs = {config.training.epochs}: {train.num_rows} rows are fewer than training.batch_size = "
            f"{config.training.batch_size}; lower the batch size or set training.steps"
        )
    inputs = {**inputs, "corpus.train": train.sha256}
    if validation is not None:
        inputs["corpus.validation"] = validation.sha256
    folder = Path(config.run.output)
    with first_process_in(partial(open_run_folder, folder, config, inputs, learner.description["stage"])):
        model_file = keep_model_file(folder, _model_facts(learner, train), tokenizer, learner.encoder.family)
        return run_training(make_job(config, learner, corpora, model_file, steps), devices, watch)


def make_job(
    config: Config, learner: Learner, corpora: tuple[Corpus, Corpus | None], model_file: Mapping[str, Any], steps: int
) -> RunSpec:
    """The run of `steps` steps that trains `learner` on `corpora` (train, held out), without looking for mistakes.

    `model_file` is the contents of the run's model.json.
    """
    train, validation = corpora
    task = _task(config, learner, train)
    return RunSpec(
        config=config,
        folder=Path(config.run.output),
        steps=steps,
        params=_completed(learner.encoder, learner.params, config.run.seed),
        trainable=learner.trainable,
        constants=_constants(config, learner, train),
        make_step=partial(make_train_step, task),
        make_batches=partial(_batches, config, train),
        batch_rows=partial(_batch_rows, config, train),
        make_evaluator=partial(_evaluator, config, task, validation),
        model_file=model_file,
        flops_per_token=_flops_per_token(config, learner, train.sequence_length),
        evaluate_every=config.evaluation.every_steps,
    )


def _batches(config: Config, corpus: Corpus, steps: range, devices: Devices) -> Iterator[np.ndarray]:
    size = config.training.batch_size
    part = devices.process_part(size)
    return training_batches(corpus, batch_size=size, seed=config.run.seed, steps=steps, part=part)


def _batch_rows(config: Config, corpus: Corpus, step: int) -> np.ndarray:
    size = config.training.batch_size
    return batch_rows(stream_order(corpus.num_rows, config.run.seed), step, size, slice(0, size))


def _evaluator(config: Config, task: StepConfig, corpus: Corpus | None, devices: Devices) -> Evaluator | None:
    settings = config.evaluation
    if corpus is None:
        return None
    measure = make_evaluator(
        devices,
        task,
        corpus,
        smoothing=config.masking.smoothing,
        rows=settings.rows,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )
    return lambda params, constants, go: measure(params, constants.teacher, go)


def _flops_per_token(config: Config, learner: Learner, length: int) -> float:
    objective = learner.objective
    predicted = 1.0 if is_causal(objective) else config.masking.probability
    if learner.teacher is not None and uses_teacher(objective):
        share = 1.0 if needs_all_logits(objective) else predicted
        return distillation_flops(learner.teacher, learner.encoder, length, head_share=share)
    frozen = "encoder" not in learner.trainable
    return pretraining_flops(learner.encoder, length, freeze_encoder=frozen, head_share=predicted)


def _task(config: Config, learner: Learner, corpus: Corpus) -> StepConfig:
    dtype, attention = jnp.dtype(config.training.compute_dtype), config.training.attention
    masking = config.masking
    rule = MaskingRule(corpus.mask_id, corpus.vocab_size, masking.probability, masking.mask, masking.random)
    return StepConfig(
        student=MaskedLM(learner.encoder, dtype, attention, config.training.remat),
        teacher=None if learner.teacher is None else MaskedLM(learner.teacher, dtype, attention),
        objective=learner.objective,
        rule=rule,
        cls_id=corpus.cls_id,
        pad_id=corpus.pad_id,
        seed=config.run.seed,
        micro_batch_size=config.training.micro_batch_size,
        trainable=learner.trainable,
    )


def _constants(config: Config, learner: Learner, corpus: Corpus) -> FrozenInputs:
    teacher = learner.teacher_params
    if teacher is not None and config.teacher.dtype == "bfloat16":
        teacher = jax.tree.map(lambda x: np.asarray(x, jnp.bfloat16), teacher)
    return FrozenInputs(teacher, masking_log_weights(corpus.token_counts, corpus.special_ids, config.masking.smoothing))


def _model_facts(learner: Learner, corpus: Corpus) -> dict[str, Any]:
    """What model.json says of the run, so that its checkpoints can be used without its inputs."""
    return {
        "model": dataclasses.asdict(learner.encoder),
        "description": dict(learner.description),
        "corpus": {
            "sources": [_source_name(source) for source in corpus.index["sources"]],
            "rows": corpus.num_rows,
            "tokens": corpus.num_tokens,
            "sha256": corpus.sha256,
            "sequence_length": corpus.sequence_length,
        },
    }


def _source_name(source: Mapping[str, Any]) -> str:
    """A dataset's name, or a file's without its folder, which does not belong into a model card."""
    return source["name"] if source["kind"] in ("hf", "tfds") else Path(source["name"]).name


def _check_kernel(config: Config) -> None:
    if config.objective.vocabulary == "kernel":
        require_device(this_device())


def _open_corpora(config: Config) -> tuple[Corpus, Corpus | None]:
    folder = Path(config.corpus.folder)
    train = open_corpus(folder / "train")
    validation = open_corpus(folder / "validation") if (folder / "validation").is_dir() else None
    if validation is not None and validation.tokenizer_sha256 != train.tokenizer_sha256:
        raise UserError(f"{folder}: train and validation were prepared with different tokenizers; prepare them again")
    if not (Path(config.run.output) / CONFIG_FILE).is_file():  # else settings are compared with those of that run
        _check_rows(config.corpus, train)
    return train, validation


def _check_rows(settings: CorpusSettings, corpus: Corpus) -> None:
    """Refuse rows that were asked for in another form than the corpus has; a default asks for nothing."""
    for key, found in (("sequence_length", corpus.sequence_length), ("pack", corpus.packed)):
        given = getattr(settings, key)
        if given not in (found, getattr(CorpusSettings(), key)):
            raise UserError(
                f"corpus.{key} = {shown(given)}: {corpus.folder} was prepared with {shown(found)}; give that, or "
                "prepare another folder"
            )


def _matching_tokenizer(path_or_id: str, corpus: Corpus) -> Tokenizer:
    tokenizer = load_tokenizer(path_or_id)
    if tokenizer.sha256 != corpus.tokenizer_sha256:
        raise UserError(
            f"{corpus.folder}: was prepared with another vocabulary than that of {path_or_id} "
            f"({corpus.vocab_size} and {tokenizer.vocab_size} tokens); prepare it again with this tokenizer"
        )
    return tokenizer


def _check_vocabulary(name: str, encoder: EncoderConfig, corpus: Corpus) -> None:
    if corpus.vocab_size > encoder.vocab_size:
        raise UserError(
            f"{name}: has {encoder.vocab_size} word embeddings, but the vocabulary of {corpus.folder} has "
            f"{corpus.vocab_size} tokens; use the model's own tokenizer to prepare the corpus"
        )


def read_model(path_or_id: str) -> tuple[EncoderConfig, Params]:
    """Configuration and parameters without BERT's pooler, which no loss here trains."""
    encoder, params, *_ = read_pretrained(path_or_id)
    body = {name: value for name, value in params["encoder"].items() if name != "pooler"}
    return dataclasses.replace(encoder, pooler=False), {**params, "encoder": body}


def scratch_encoder(settings: Model, vocab_size: int, pad_id: int) -> EncoderConfig:
    """The encoder of the sizes in the section [model]."""
    return new_encoder_config(
        settings.family,
        "model.family",
        vocab_size=vocab_size,
        hidden_size=settings.hidden_size,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        intermediate_size=settings.intermediate_size,
        max_position_embeddings=settings.max_position_embeddings,
        activation=settings.activation,
        hidden_dropout=settings.hidden_dropout,
        attention_dropout=settings.attention_dropout,
        initializer_range=settings.initializer_range,
        pad_token_id=pad_id,
    )


def _completed(encoder: EncoderConfig, params: Params, seed: int) -> Params:
    """`params`, with random values for the parts that they lack."""
    if params.keys() >= {"encoder", "mlm_head"}:
        return params
    key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)  # no step has this number
    init = jax.jit(lambda: MaskedLM(encoder).init(key, jnp.zeros((1, 8), jnp.int32))["params"])
    return {**jax.tree.map(np.asarray, dict(init())), **params}


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
    for field in _COMPUTED:
        if getattr(found, field) != getattr(encoder, field):
            raise UserError(
                f"student.init = {settings.init}: its {field} is {getattr(found, field)}, "
                f"that of the student of {config.teacher.path} is {getattr(encoder, field)}"
            )
    if "mlm_head" not in params:
        raise UserError(f"student.init = {settings.init}: has no masked-language-model head")
    return params
