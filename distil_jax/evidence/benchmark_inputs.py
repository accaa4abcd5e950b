"""The run that is measured: the real models and data where they are on this machine, made-up ones of the same shapes
where they are not.

Nothing is downloaded. What was made up is said in the notes.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distil_jax.config import Config, with_overrides
from distil_jax.corpus import Corpus, open_corpus
from distil_jax.corpus.packing import best_fit, token_dtype
from distil_jax.corpus.tokens import INDEX, Shard
from distil_jax.errors import UserError
from distil_jax.evidence.benchmark_plan import Stage
from distil_jax.evidence.benchmark_tasks import task_parts
from distil_jax.hf import Tokenizer, load_tokenizer, read_encoder_config
from distil_jax.hf.locate import WEIGHT_FILES
from distil_jax.models import EncoderConfig, MaskedLM
from distil_jax.tasks.finetune import make_job as make_task_job
from distil_jax.tasks.finetune import read_learner
from distil_jax.training.loop import Job
from distil_jax.training.stages import distillation_learner, make_job, pretraining_learner, read_model, scratch_encoder

STEPS = 100_000  # of the learning-rate schedule: more than are ever measured
_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PAD, _UNK, _CLS, _SEP, _MASK = range(5)
# Tokens of a line of English Wikipedia: their logarithm is about normal with this mean and deviation.
_LOG_LENGTH = (3.9, 0.9)
Params = dict[str, Any]


class Inputs(NamedTuple):
    """A run ready to be measured, its encoders, and what was made up."""

    job: Job
    student: EncoderConfig
    teacher: EncoderConfig | None
    notes: tuple[str, ...]


def make_inputs(config: Config, stage: Stage, vocabulary: int) -> Inputs:
    """The run that `config` describes.

    Args:
        config: a configuration; paths in it may lead nowhere.
        stage: which step.
        vocabulary: tokens of a made-up model or corpus.
    """
    # A run has to have a name; nothing is written there.
    config = with_overrides(config, {"run.output": config.run.output or "benchmark"})
    return _finetuning(config, vocabulary) if stage == "finetune" else _on_text(config, stage, vocabulary)


def _on_text(config: Config, stage: Stage, vocabulary: int) -> Inputs:
    source, name = (
        (config.teacher.path, "teacher.path") if stage == "distill" else (config.model.initial, "model.initial")
    )
    notes: list[str] = []
    corpus = _real_corpus(config)
    size = corpus.vocab_size if corpus is not None else vocabulary
    encoder, params = model_or_random(config, source, name, size, notes)
    if corpus is not None and corpus.vocab_size > encoder.vocab_size:
        corpus = None
    if corpus is None:
        corpus = synthetic_corpus(config, encoder.vocab_size)
        notes.append(f"made-up rows of {corpus.sequence_length} tokens, {corpus.fill:.1%} filled")
    if corpus.sequence_length > encoder.max_position_embeddings:
        raise UserError(
            f"rows of {corpus.sequence_length} tokens, but {name} has {encoder.max_position_embeddings} positions; "
            "lower --lengths"
        )
    if stage == "distill":
        learner = distillation_learner(config, encoder, params)
    else:
        learner = pretraining_learner(config, encoder, params)
    job = make_job(config, learner, (corpus, None), {}, STEPS)
    return Inputs(job, learner.encoder, learner.teacher, tuple(notes))


def _real_corpus(config: Config) -> Corpus | None:
    folder = Path(config.corpus.folder) / "train"
    if not config.corpus.folder or not (folder / INDEX).is_file():
        return None
    corpus = open_corpus(folder)
    fits = corpus.sequence_length == config.corpus.sequence_length and corpus.packed == config.corpus.pack
    return corpus if fits and corpus.num_rows >= config.training.batch_size else None


def model_or_random(
    config: Config, source: str, name: str, vocabulary: int, notes: list[str]
) -> tuple[EncoderConfig, Params]:
    """The model in the folder `source`; random weights of its sizes where it holds a config.json alone, of those in
    the section [model] where there is no such folder.
    """
    folder = Path(source).expanduser()
    if source and any((folder / file).is_file() for file in WEIGHT_FILES):
        encoder, params = read_model(source)
        return encoder, _with_head(encoder, params)
    if source and (folder / "config.json").is_file():
        encoder = dataclasses.replace(read_encoder_config(source), pooler=False)
        notes.append(f"{name} = {source}: random weights of the sizes in its config.json")
    else:
        encoder = scratch_encoder(config.model, vocabulary, _PAD)
        sizes = f"{encoder.num_layers} layers, width {encoder.hidden_size}, {encoder.vocab_size:,} tokens"
        where = f"{name} = {source} is not on this machine: " if source else ""
        notes.append(f"{where}random weights ({sizes})")
    return encoder, random_params(MaskedLM(encoder), encoder.initializer_range)


def random_params(module: Any, spread: float, seed: int = 0) -> Params:
    """Weights such as training starts from, drawn by NumPy, so that nothing is compiled for them.

    Args:
        module: has the parameters; called on ids [1, 8].
        spread: standard deviation of kernels and embeddings; scales are 1 and biases 0.
        seed: of the draw.
    """
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"])
    generator = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: Any) -> np.ndarray:
        kind = str(getattr(path[-1], "key", ""))
        if kind in ("scale", "bias"):
            return np.full(leaf.shape, float(kind == "scale"), np.float32)
        return np.float32(spread) * generator.standard_normal(leaf.shape, np.float32)

    return jax.tree_util.tree_map_with_path(draw, dict(shapes))


def _with_head(encoder: EncoderConfig, params: Params) -> Params:
    if "mlm_head" in params:
        return params
    return {**random_params(MaskedLM(encoder), encoder.initializer_range), **params}


def synthetic_corpus(config: Config, vocabulary: int, rows: int = 0) -> Corpus:
    """Rows of made-up sequences as long as lines of Wikipedia, of tokens as frequent as words, in memory.

    Packed or one a row, as corpus.pack says. At least `rows` rows, or two batches.
    """
    length, wanted = config.corpus.sequence_length, rows or max(2 * config.training.batch_size, 64)
    generator = np.random.default_rng(0)
    number = wanted
    while True:
        lengths = np.clip(np.exp(generator.normal(*_LOG_LENGTH, number)), min(12, length), length).astype(np.int64)
        row, offset = (
            best_fit(lengths.tolist(), length, config.corpus.min_tokens)
            if config.corpus.pack
            else (np.arange(number), np.zeros(number, np.int64))
        )
        if int(row.max()) + 1 >= wanted:
            break
        number *= 2
    ids = np.full((int(row.max()) + 1, length), _PAD, token_dtype(vocabulary))
    words = np.minimum(len(_SPECIALS) + generator.zipf(1.3, ids.shape) % (vocabulary - len(_SPECIALS)), vocabulary - 1)
    for place, start, size in zip(row.tolist(), offset.tolist(), lengths.tolist(), strict=True):
        ids[place, start : start + size] = words[place, start : start + size]
        ids[place, start], ids[place, start + size - 1] = _CLS, _SEP
    return corpus_of_rows(ids[generator.permutation(len(ids))], vocabulary, len(lengths), config.corpus.pack)


def corpus_of_rows(ids: np.ndarray, vocabulary: int, sequences: int, packed: bool) -> Corpus:
    """Token ids [N, L] as a corpus in memory, with the special tokens of the made-up vocabulary."""
    real = int((ids != _PAD).sum())
    counts = np.bincount(ids.reshape(-1), minlength=vocabulary)
    counts[_PAD] = 0
    return Corpus(
        folder=Path("made-up"),
        sequence_length=ids.shape[1],
        packed=packed,
        num_rows=len(ids),
        num_tokens=real,
        num_sequences=sequences,
        num_documents=sequences,
        vocab_size=vocabulary,
        tokenizer_sha256="",
        pad_id=_PAD,
        unk_id=_UNK,
        cls_id=_CLS,
        sep_id=_SEP,
        mask_id=_MASK,
        dtype=ids.dtype,
        sha256="",
        token_counts=counts.astype(np.int64),
        shards=(Shard(0, 0, len(ids), sequences, 0, ids, Path()),),
        index={"sources": []},
    )


def _finetuning(config: Config, vocabulary: int) -> Inputs:
    if not config.task.name:
        config = with_overrides(config, {"task.name": "mrpc"})
    notes: list[str] = []
    source = config.model.initial
    real = bool(source) and any((Path(source).expanduser() / file).is_file() for file in WEIGHT_FILES)
    tokenizer = load_tokenizer(source) if real else made_up_tokenizer(vocabulary)
    parts = task_parts(config, tokenizer, notes)
    if real:
        learner = read_learner(config, parts.data)
    else:
        encoder = scratch_encoder(config.model, vocabulary, _PAD)
        learner = parts.random_learner(encoder, with_teacher=bool(config.teacher.path), draw=random_params)
        where = f"model.initial = {source} is not on this machine: " if source else ""
        notes.append(f"{where}random weights ({encoder.num_layers} layers, width {encoder.hidden_size})")
    job = make_task_job(config, parts.data, learner, parts.train, {}, {})
    teacher = None if learner.teacher is None else learner.teacher[0]
    return Inputs(job, learner.encoder, teacher, tuple(notes))


def made_up_tokenizer(vocabulary: int) -> Tokenizer:
    """A WordPiece tokenizer of the special tokens and words "w5", "w6", ..."""
    words = (f"w{number}" for number in range(len(_SPECIALS), vocabulary))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join([*_SPECIALS, *words]) + "\n", encoding="utf-8")
        return load_tokenizer(path)
