"""What `pretrain` and `distill` share: the corpus, the checks before a program is compiled, the run's specification."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from distil_jax.config import Config, CorpusSettings, Objective
from distil_jax.data.corpus import (
    Corpus,
    MaskingRule,
    TeacherCache,
    batch_rows,
    masking_log_weights,
    open_corpus,
    stream_order,
    training_batches,
)
from distil_jax.errors import UserError, shown
from distil_jax.hf import Tokenizer, load_tokenizer, locate, read_pooling, read_pretrained
from distil_jax.models import EncoderConfig, MaskedLM
from distil_jax.objectives import (
    PROJECTIONS,
    active_terms,
    at_predictions,
    capture_of,
    needs_all_logits,
    uses_teacher,
    uses_vocabulary,
)
from distil_jax.runs import CONFIG_FILE, Watchdog, announce, first_process_in, keep_model_file, open_run_folder
from distil_jax.training.device_settings import StepSizes, memory_text, settled
from distil_jax.training.evaluation import make_evaluator
from distil_jax.training.flops import distillation_flops, pretraining_flops
from distil_jax.training.loop import RunSpec, TrainResult, run_training
from distil_jax.training.opening import About, corpus_text, loss_text, model_text
from distil_jax.training.parallel import Devices, check_batch, devices_of
from distil_jax.training.step import Evaluator, FrozenInputs, Params
from distil_jax.training.teacher_cache import outputs_of
from distil_jax.training.text_step import CachedRows, TextModels, text_step_config

_NO_STEP = 2**31 - 1  # a number that no step has: of the stream of random initial values


@dataclasses.dataclass(frozen=True)
class TextTraining:
    """What a run on text trains, and the teacher it learns from.

    Attributes:
        encoder: of the model that is trained.
        params: before the first step; "encoder" and "mlm_head" start from random values where they are missing and
            the objective reads logits.
        trainable: the groups that get updates, or parts of them (`StepConfig`).
        objective: the loss terms.
        teacher: its encoder; None without one.
        teacher_params: its parameters.
        description: what checkpoints and cards say of the run.
        cache: what the teacher said, in the place of a teacher.
    """

    encoder: EncoderConfig
    params: Params
    trainable: tuple[str, ...]
    objective: Objective
    teacher: EncoderConfig | None = None
    teacher_params: Params | None = None
    description: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cache: TeacherCache | None = None


@dataclasses.dataclass(frozen=True)
class Corpora:
    """The text that a run learns from, and the held-out text if there is some."""

    train: Corpus
    validation: Corpus | None = None

    @property
    def longest_row(self) -> int:
        """Tokens of the longest rows."""
        return max(corpus.sequence_length for corpus in (self.train, self.validation) if corpus is not None)


def train_on_text(
    config: Config,
    watchdog: Watchdog,
    training: TextTraining,
    corpora: Corpora,
    tokenizer: Tokenizer,
    inputs: Mapping[str, str],
) -> TrainResult:
    """The finished run. `inputs` are the fingerprints of the models it starts from, by the setting that names them.

    Raises:
        UserError: corpus, models, devices and the run's folder do not fit each other; before anything is compiled.
    """
    check_text(config, training, corpora)
    devices = devices_of(config.parallel)
    check_batch(config.training.batch_size, devices.count)
    train, steps = corpora.train, planned_steps(config, corpora.train)
    if training.cache is not None and training.cache.steps < steps:
        raise UserError(
            f"teacher.cache = {config.teacher.cache}: has the first {training.cache.steps} steps, the run takes "
            f"{steps}; distil-jax cache-teacher with the same settings adds the others"
        )
    inputs = {**inputs, "corpus.train": train.sha256}
    if corpora.validation is not None:
        inputs["corpus.validation"] = corpora.validation.sha256
    folder = Path(config.run.output)
    with first_process_in(partial(open_run_folder, folder, config, inputs, training.description["stage"])):
        model_file = keep_model_file(folder, _model_facts(training, train), tokenizer, training.encoder.family)
        spec = text_run_spec(config, training, corpora, model_file, steps, devices.count)
        return run_training(spec, devices, watchdog)


def check_text(config: Config, training: TextTraining, corpora: Corpora) -> None:
    """Raises UserError where the models do not take the rows of `corpora`, or the objective not their masks."""
    check_vocabulary("model", training.encoder, corpora.train)
    _check_masking(config, training.objective)
    for name, encoder in (("model", training.encoder), ("teacher", training.teacher)):
        if encoder is not None and corpora.longest_row > encoder.max_length:
            raise UserError(
                f"corpus.folder = {config.corpus.folder}: rows of {corpora.longest_row} tokens, but the {name} has "
                f"{encoder.max_length} positions; prepare with a smaller corpus.sequence_length"
            )


def planned_steps(config: Config, corpus: Corpus) -> int:
    """Optimiser steps of a run on `corpus`. Raises UserError where there are none."""
    training = config.training
    steps = training.steps or (training.epochs * corpus.num_rows) // training.batch_size
    if steps == 0:
        raise UserError(
            f"training.epochs = {training.epochs}: {corpus.num_rows} rows are fewer than training.batch_size = "
            f"{training.batch_size}; lower the batch size or set training.steps"
        )
    return steps


def text_run_spec(
    config: Config,
    training: TextTraining,
    corpora: Corpora,
    model_file: Mapping[str, Any],
    steps: int,
    devices: int = 1,
) -> RunSpec:
    """The run of `steps` steps that trains on `corpora` on so many devices, without looking for mistakes.

    `model_file` is the contents of the run's model.json.
    """
    train = corpora.train
    sizes = step_sizes(training, train, devices)
    config = settled(config, sizes)
    models, params = text_models(config, training, train), fill_missing_params(training, config.run.seed)
    return RunSpec(
        config=config,
        folder=Path(config.run.output),
        steps=steps,
        params=params,
        frozen=frozen_inputs(config, training, train),
        step=text_step_config(models, config.training.micro_batch_size, training.trainable, steps),
        make_batches=partial(text_batches, config, train, training.cache),
        batch_rows=partial(_batch_rows, config, train),
        make_evaluator=partial(_evaluator, config, models, corpora.validation),
        model_file=model_file,
        flops_per_token=_flops_per_token(config, training, train.sequence_length),
        evaluate_every=config.evaluation.every_steps,
        about=(*_about(config, training, corpora, params), *memory_text(config, sizes)),
    )


def step_sizes(training: TextTraining, train: Corpus, devices: int) -> StepSizes:
    """What decides the memory of the run's step on so many devices."""
    return StepSizes(
        training.encoder,
        () if training.teacher is None else (training.teacher,),
        train.sequence_length,
        uses_vocabulary(training.objective),
        capture_of(active_terms(training.objective)),
        devices,
    )


def _about(config: Config, training: TextTraining, corpora: Corpora, params: Params) -> About:
    """The rows of the opening table on models and text."""
    facts, held_out = training.description, corpora.validation
    layers = facts.get("layers")
    copied = f"; layers {', '.join(map(str, layers))} of the teacher" if layers else ""
    rows = [("student" if facts["stage"] == "distill" else "model", f"{model_text(training.encoder, params)}{copied}")]
    if training.teacher is not None and training.teacher_params is not None:
        rows.append(("teacher", f"{facts['teacher']}: {model_text(training.teacher, training.teacher_params)}"))
    rows += [("text", corpus_text(corpora.train)), ("held out", corpus_text(held_out) if held_out else "nothing")]
    rows += [("note", note) for corpus in (corpora.train, held_out) if corpus is not None for note in corpus.notes]
    return (*rows, ("loss", loss_text(training.objective.weights)))


def _check_masking(config: Config, objective: Objective) -> None:
    """Refuse a term that counts at predicted tokens where none is predicted."""
    if not config.masking.probability and (terms := at_predictions(objective)):
        raise UserError(
            f"masking.probability = 0: {' and '.join(terms)} count at masked tokens; set it above 0, or leave them out"
        )


def text_models(config: Config, training: TextTraining, corpus: Corpus) -> TextModels:
    """Modules, objective and masking of a run."""
    settings, masking = config.training, config.masking
    dtype, attention = jnp.dtype(settings.compute_dtype), settings.attention
    return TextModels(
        student=MaskedLM(training.encoder, dtype, attention, settings.remat, settings.exact_dropout),
        teacher=None if training.teacher is None else MaskedLM(training.teacher, dtype, attention),
        objective=training.objective,
        rule=MaskingRule(corpus.mask_id, corpus.vocab_size, masking.probability, masking.mask, masking.random),
        cls_id=corpus.cls_id,
        pad_id=corpus.pad_id,
    )


def frozen_inputs(config: Config, training: TextTraining, corpus: Corpus) -> FrozenInputs:
    """What the steps of a run only read."""
    teacher = training.teacher_params
    if teacher is not None and config.teacher.dtype == "bfloat16":
        teacher = jax.tree.map(lambda x: np.asarray(x, jnp.bfloat16), teacher)
    log_weights = masking_log_weights(corpus.token_counts, corpus.special_ids, config.masking.smoothing)
    return FrozenInputs(np.int32(config.run.seed), teacher, log_weights)


def text_batches(
    config: Config, corpus: Corpus, cache: TeacherCache | None, steps: range, devices: Devices
) -> Iterator[Any]:
    """This process's rows [b, L] of the batches of `steps`, with what the cache has of them."""
    size = config.training.batch_size
    part = devices.process_part(size)
    batches = partial(training_batches, corpus, batch_size=size, seed=config.run.seed, steps=steps, part=part)
    if cache is None:
        return batches()
    return batches(complete=lambda step, ids: CachedRows(ids, outputs_of(cache.read(step, part))))


def _batch_rows(config: Config, corpus: Corpus, step: int) -> np.ndarray:
    size = config.training.batch_size
    return batch_rows(stream_order(corpus.num_rows, config.run.seed), step, size, slice(0, size))


def _evaluator(config: Config, models: TextModels, corpus: Corpus | None, devices: Devices) -> Evaluator | None:
    settings = config.evaluation
    if corpus is None:
        return None
    return make_evaluator(
        devices,
        models,
        corpus,
        smoothing=config.masking.smoothing,
        rows=settings.rows,
        batch_size=settings.batch_size,
        seed=settings.seed,
    )


def _flops_per_token(config: Config, training: TextTraining, length: int) -> float:
    objective, predicted = training.objective, config.masking.probability
    if not uses_vocabulary(objective):
        predicted = 0.0
    share = 1.0 if needs_all_logits(objective) else predicted
    if training.teacher is not None and uses_teacher(objective):
        return distillation_flops(training.teacher, training.encoder, length, head_share=share)
    frozen = not any(name.startswith("encoder") for name in training.trainable)
    return pretraining_flops(training.encoder, length, freeze_encoder=frozen, head_share=share)


def _model_facts(training: TextTraining, corpus: Corpus) -> dict[str, Any]:
    """What model.json says of the run, so that its checkpoints can be used without its inputs."""
    return {
        "model": dataclasses.asdict(training.encoder),
        "groups": sorted(_groups(training) - {PROJECTIONS}),
        "description": dict(training.description),
        "corpus": {
            "sources": [_source_name(source) for source in corpus.index["sources"]],
            "rows": corpus.num_rows,
            "tokens": corpus.num_tokens,
            "sha256": corpus.sha256,
            "sequence_length": corpus.sequence_length,
        },
    }


def _source_name(source: Mapping[str, Any]) -> str:
    """A dataset's name, or a file's without its folder, which does not belong in a model card."""
    return source["name"] if source["kind"] in ("hf", "tfds") else Path(source["name"]).name


def open_corpora(config: Config) -> Corpora:
    """The prepared corpus of `corpus.folder`.

    Raises:
        UserError: there is none, its parts differ, or its rows have another form than the settings ask for.
    """
    folder = Path(config.corpus.folder)
    train = open_corpus(folder / "train")
    validation = open_corpus(folder / "validation") if (folder / "validation").is_dir() else None
    if validation is not None and validation.tokenizer_sha256 != train.tokenizer_sha256:
        raise UserError(f"{folder}: train and validation were prepared with different tokenizers; prepare them again")
    if not (Path(config.run.output) / CONFIG_FILE).is_file():  # else settings are compared with those of that run
        _check_rows(config.corpus, train)
    return Corpora(train, validation)


def _check_rows(settings: CorpusSettings, corpus: Corpus) -> None:
    """Refuse rows that were asked for in another form than the corpus has; a default asks for nothing."""
    for key, found in (("sequence_length", corpus.sequence_length), ("pack", corpus.packed)):
        given = getattr(settings, key)
        if given not in (found, getattr(CorpusSettings(), key)):
            raise UserError(
                f"corpus.{key} = {shown(given)}: {corpus.folder} was prepared with {shown(found)}; give that, or "
                "prepare another folder"
            )


def matching_tokenizer(path_or_id: str, corpus: Corpus) -> Tokenizer:
    """The tokenizer of a folder or hub id. Raises UserError where `corpus` was prepared with another one."""
    tokenizer = load_tokenizer(path_or_id)
    if tokenizer.sha256 != corpus.tokenizer_sha256:
        raise UserError(
            f"{corpus.folder}: was prepared with another vocabulary than that of {path_or_id} "
            f"({corpus.vocab_size} and {tokenizer.vocab_size} tokens); prepare it again with this tokenizer"
        )
    return tokenizer


def check_vocabulary(name: str, encoder: EncoderConfig, corpus: Corpus) -> None:
    """Raises UserError where the corpus has tokens that the encoder lacks; the message calls the model `name`."""
    if corpus.vocab_size > encoder.vocab_size:
        raise UserError(
            f"{name}: has {encoder.vocab_size} word embeddings, but the vocabulary of {corpus.folder} has "
            f"{corpus.vocab_size} tokens; use the model's own tokenizer to prepare the corpus"
        )


def read_model(path_or_id: str) -> tuple[EncoderConfig, Params]:
    """Configuration and parameters without BERT's pooler, which no loss here trains. Prints notes on the folder."""
    encoder, params, *_, notes = read_pretrained(path_or_id)
    announce(f"note: {note}" for note in notes)
    body = {name: value for name, value in params["encoder"].items() if name != "pooler"}
    return dataclasses.replace(encoder, pooler=False), {**params, "encoder": body}


def with_pooling(training: TextTraining, path_or_id: str) -> TextTraining:
    """`training`, whose description also says how the model it starts from makes one vector of a text, if it does."""
    found = read_pooling(locate(path_or_id, files="sentence"))
    if found is None:
        return training
    return dataclasses.replace(training, description={**training.description, "pooling": dataclasses.asdict(found)})


def fill_missing_params(training: TextTraining, seed: int) -> Params:
    """The parameters before the first step, with random values for the parts that are missing."""
    given = flatten_dict(training.params)
    wanted = {path for path in flatten_dict(parameter_shapes(training.encoder)) if path[0] in _groups(training)}
    if wanted <= given.keys():
        return training.params
    key = jax.random.fold_in(jax.random.key(seed), _NO_STEP)
    drawn = flatten_dict(jax.tree.map(np.asarray, jax.jit(partial(_init, training.encoder))(key)))
    return unflatten_dict({**{path: drawn[path] for path in wanted}, **given})


def parameter_shapes(encoder: EncoderConfig) -> Params:
    """Shapes and types of the parameters of a masked language model."""
    return jax.eval_shape(partial(_init, encoder), jax.random.key(0))


def _init(encoder: EncoderConfig, key: jax.Array) -> Params:
    return dict(MaskedLM(encoder).init(key, jnp.zeros((1, 8), jnp.int32))["params"])


def _groups(training: TextTraining) -> set[str]:
    """The top-level groups of the trained model's parameters; without a term over the vocabulary it needs no head."""
    return {*training.params, *(name.partition("/")[0] for name in training.trainable)}
