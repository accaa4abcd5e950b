"""Held-out measures of trained models: any run or model folder, on any prepared text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from distil_jax.config import Masking, Objective
from distil_jax.data.corpus import Corpus, MaskingRule, open_corpus
from distil_jax.errors import UserError
from distil_jax.export import read_run
from distil_jax.hf import Tokenizer, home_resolved, load_tokenizer, read_pretrained
from distil_jax.models import EncoderConfig, MaskedLM
from distil_jax.training.evaluation import make_evaluator
from distil_jax.training.parallel import make_devices
from distil_jax.training.step import FrozenInputs
from distil_jax.training.text_step import TextModels


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A masked language model with its tokenizer; params are NumPy float32."""

    encoder: EncoderConfig
    params: dict[str, Any]
    tokenizer: Tokenizer

    @property
    def num_parameters(self) -> int:
        """Parameters, those tied counted once."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))


def load_language_model(path: str) -> LanguageModel:
    """The model of a run's newest checkpoint, of a local model folder or of a hub id.

    Raises:
        UserError: none of these, or a model without a masked-language-model head.
    """
    run = home_resolved(path)
    if (run / "checkpoints").is_dir():
        trained = read_run(run)
        if trained.head is not None:
            raise UserError(f"{path}: was fine-tuned on a task; its measures are in its result.json")
        _require_head(path, trained.params)
        return LanguageModel(trained.encoder, trained.params, trained.tokenizer)
    encoder, params, *_ = read_pretrained(path)
    _require_head(path, params)
    return LanguageModel(encoder, params, load_tokenizer(path))  # of a hub id, `read_pretrained` fetches no tokenizer


def _require_head(path: str, params: Mapping[str, Any]) -> None:
    if "mlm_head" not in params:
        raise UserError(
            f"{path}: has no masked-language-model head, so there is no masked-token loss to measure; `distil-jax "
            "finetune` shows what it is worth on a task, and the report of a run what that measured"
        )


def evaluate_model(
    model: LanguageModel,
    corpus: Corpus,
    *,
    teacher: LanguageModel | None = None,
    masking: Masking = Masking(),
    rows: int = 0,
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, float]:
    """Masked-token loss, perplexity, accuracy, and KL to and agreement with `teacher`, on the rows of `corpus`.

    Args:
        model: what is measured.
        corpus: prepared with the model's own tokenizer.
        teacher: what it is compared with.
        masking: how positions are chosen.
        rows: the first rows used; 0 is all.
        batch_size: rows a pass over all devices; does not change the result.
        seed: of the masks; with one seed, all models predict the same tokens.

    Raises:
        UserError: the corpus has another vocabulary or longer rows than the models.
    """
    models = {"model": model} if teacher is None else {"model": model, "teacher": teacher}
    for role, one in models.items():
        _check_fits(role, one, corpus)
    models = TextModels(
        student=MaskedLM(model.encoder),
        teacher=None if teacher is None else MaskedLM(teacher.encoder),
        objective=Objective(cosine=0.0),
        rule=MaskingRule(corpus.mask_id, corpus.vocab_size, masking.probability, masking.mask, masking.random),
        cls_id=corpus.cls_id,
        pad_id=corpus.pad_id,
    )
    devices = make_devices("shard_map")
    evaluator = make_evaluator(
        devices, models, corpus, smoothing=masking.smoothing, rows=rows, batch_size=batch_size, seed=seed
    )
    teacher_params = None if teacher is None else devices.replicate(teacher.params)
    return evaluator(devices.replicate(model.params), FrozenInputs(None, teacher_params))


def _check_fits(role: str, model: LanguageModel, corpus: Corpus) -> None:
    if model.tokenizer.sha256 != corpus.tokenizer_sha256:
        raise UserError(
            f"{corpus.folder}: was prepared with another vocabulary than the {role}'s; prepare it with that"
        )
    if corpus.sequence_length > model.encoder.max_length:
        raise UserError(
            f"{corpus.folder}: rows of {corpus.sequence_length} tokens, but the {role} has "
            f"{model.encoder.max_length} positions"
        )


def evaluate_paths(
    paths: Sequence[str],
    corpus_folder: str,
    teacher: str = "",
    rows: int = 0,
    seed: int = 0,
    masking: Masking = Masking(),
) -> Mapping[str, dict[str, float]]:
    """`evaluate_model` for several runs or folders, with parameter counts: path -> measures."""
    corpus = open_corpus(Path(corpus_folder))
    reference = load_language_model(teacher) if teacher else None
    measures = {}
    for path in paths:
        model = load_language_model(path)
        found = evaluate_model(model, corpus, teacher=reference, masking=masking, rows=rows, seed=seed)
        measures[path] = {"parameters": float(model.num_parameters), **found}
    return measures


def fill_mask(model: LanguageModel, text: str, top: int = 5) -> list[tuple[str, float]]:
    """The `top` most probable tokens at the first mask token of `text` ("[MASK]"), with their probabilities."""
    tokenizer = model.tokenizer
    ids = tokenizer.backend.encode(text).ids
    if tokenizer.mask_id not in ids:
        raise UserError(f"{text!r}: has no {tokenizer.backend.id_to_token(tokenizer.mask_id)}")
    if len(ids) > model.encoder.max_length:
        raise UserError(f"{text[:40]!r}...: {len(ids)} tokens, but the model has {model.encoder.max_length} positions")
    logits = jax.jit(MaskedLM(model.encoder).apply)({"params": model.params}, jnp.asarray([ids]))
    probabilities = jax.nn.softmax(jnp.asarray(logits)[0, ids.index(tokenizer.mask_id)])
    values, tokens = jax.lax.top_k(probabilities, top)
    names = [tokenizer.backend.id_to_token(int(token)) or "" for token in tokens]
    return list(zip(names, map(float, values), strict=True))
