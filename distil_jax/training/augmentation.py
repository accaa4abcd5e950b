"""Copies of training rows with other words, for a teacher to label (Jiao et al. 2020, Algorithm 1).

A token that is a word of its own is replaced, with a probability, by a random one of its candidates: the words that a
masked language model finds most probable in its place, or those whose embeddings are nearest. Words of several tokens
stay. One pass of the masked language model hides every seventh such word, as many as in its training, where the
algorithm hides one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distil_jax.config import Augment, Config
from distil_jax.errors import UserError
from distil_jax.hf import load_tokenizer, read_pretrained
from distil_jax.models import EncoderInputs, MaskedLM
from distil_jax.runs import fingerprint, unfinished
from distil_jax.tasks import (
    Encoded,
    choose_buckets,
    collate_inputs,
    continuation_table,
    evaluation_plan,
    replace_words,
    whole_words,
    with_unlabelled,
    word_tokens,
)
from distil_jax.training.step import Params
from distil_jax.training.task_models import TaskTraining, check_vocabulary

AUGMENTED_FILE = "augmented.npz"  # in a run's folder, so that a run continues on the same rows on any device
_EVERY = 7  # words, of which one is hidden: 14 %
_BATCH = 32  # rows that are computed at once
_NO_WORD = -1


@dataclasses.dataclass(frozen=True)
class Copies:
    """Copies of rows: their ids, the number of the row that each is of, and what identifies how they were made."""

    ids: list[np.ndarray]
    rows: np.ndarray
    key: str

    def added_to(self, train: Encoded) -> Encoded:
        """The rows of `train`, then the copies, whose labels are not known."""
        chosen = self.rows.tolist()
        more = dataclasses.replace(
            train,
            ids=self.ids,
            types=[train.types[row] for row in chosen],
            labels=None if train.labels is None else [train.labels[row] for row in chosen],
            lengths=train.lengths[self.rows],
            notes=(),
        )
        return with_unlabelled(train, more)

    def save(self, folder: Path) -> None:
        """Writes them into a run's folder, unless they are there."""
        path = folder / AUGMENTED_FILE
        if not path.is_file():
            with unfinished(path).open("wb") as file:
                flat, lengths = np.concatenate([*self.ids, np.empty(0, np.int32)]), [len(row) for row in self.ids]
                np.savez(file, ids=flat, lengths=lengths, rows=self.rows, key=self.key)
            unfinished(path).replace(path)

    @property
    def line(self) -> str:
        """What is said of them before training."""
        return f"augmented: {len(self.ids):,} copies with other words; the teacher labels them"


def make_copies(config: Config, training: TaskTraining, train: Encoded) -> Copies | None:
    """Copies of the rows of `train` as [augment] has them, from the run's folder where it holds them; None for none.

    Copies that are equal to their row or to an earlier copy of it are left out. They are a function of the settings,
    the seed, the rows and the model.

    Raises:
        UserError: no teacher, rows that are choices, or a model that gives no words.
    """
    settings = config.augment
    if settings.method == "none":
        return None
    if not config.teacher.path or "kl" not in config.finetune.weights:
        raise UserError(
            f"augment.method = {settings.method}: a teacher labels the copies; give teacher.path and a finetune.kl "
            "above 0, or set it to none"
        )
    if train.choices:
        raise UserError(f"augment.method = {settings.method}: choices have endings that share words; set it to none")
    encoder, params = _source(config, training, int(train.lengths.max()))
    key = _key(settings, config.run.seed, train, fingerprint(params))
    kept = _kept(Path(config.run.output) / AUGMENTED_FILE, key)
    if kept is not None:
        return kept
    tokenizer = training.tokenizer
    continuation = continuation_table(tokenizer)
    places = [np.flatnonzero(whole_words(ids, continuation, tokenizer.special_ids)) for ids in train.ids]
    allowed = word_tokens(tokenizer, continuation)
    if settings.candidates >= allowed.sum():
        raise UserError(f"augment.candidates = {settings.candidates}: only {allowed.sum()} tokens are words; lower it")
    if settings.method == "mlm":
        found = mlm_candidates(
            MaskedLM(encoder), params, train, places, allowed, tokenizer.mask_id, settings.candidates
        )
    else:
        table = np.asarray(params["encoder"]["embeddings"]["word"]["embedding"], np.float32)
        found = nearest_words(table, train.ids, places, allowed, settings.candidates)
    copies: list[np.ndarray] = []
    rows: list[int] = []
    for row, (ids, spots, words) in enumerate(zip(train.ids, places, found, strict=True)):
        seen = {ids.tobytes()}
        for number in range(settings.copies):
            rng = np.random.default_rng([config.run.seed, row, number])
            copy = replace_words(ids, spots, words, settings.probability, rng)
            if copy.tobytes() not in seen:
                seen.add(copy.tobytes())
                copies.append(copy)
                rows.append(row)
    return Copies(copies, np.array(rows, np.int64), key)


def _source(config: Config, training: TaskTraining, longest: int) -> tuple[Any, Params]:
    """The model that words come from, for rows of at most `longest` tokens: its encoder's sizes, and its parameters."""
    path, mlm = config.augment.model or config.model.initial, config.augment.method == "mlm"
    if load_tokenizer(path).sha256 != training.tokenizer.sha256:
        raise UserError(f"augment.model = {path}: its vocabulary is not that of model.initial; choose another model")
    encoder, params, *_ = read_pretrained(path, "auto" if mlm else "none")
    if mlm and "mlm_head" not in params:
        raise UserError(
            f"augment.method = mlm: {path} has no masked-language-model head; name a model with one in augment.model, "
            "or set augment.method to embedding"
        )
    check_vocabulary(path, encoder, training.tokenizer)
    if mlm and longest > encoder.max_length:
        raise UserError(
            f"augment.model = {path}: takes {encoder.max_length} tokens, and the longest row has {longest}; lower "
            "task.max_length, or choose another model"
        )
    return encoder, params


def _key(settings: Augment, seed: int, train: Encoded, model: str) -> str:
    found = hashlib.sha256(repr((settings, seed, model)).encode())
    for ids in train.ids:
        found.update(ids.tobytes() + b"|")
    return found.hexdigest()


def _kept(path: Path, key: str) -> Copies | None:
    """The copies in a run's folder; None where there are none, or others. Raises UserError where it is damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path) as values:
            if str(values["key"]) != key:
                return None
            ends = np.cumsum(values["lengths"])[:-1]
            ids = np.split(values["ids"], ends) if len(values["rows"]) else []
            return Copies(ids, values["rows"], key)
    except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: damaged ({error}); delete it, and the same command makes it again") from None


def nearest_words(
    table: np.ndarray, ids: Sequence[np.ndarray], places: Sequence[np.ndarray], allowed: np.ndarray, count: int
) -> list[np.ndarray]:
    """The words whose embeddings have the largest cosine with that of each word.

    Args:
        table: [V, H] float32, word embeddings, perhaps with more rows behind them.
        ids: rows of token ids.
        places: of the words of each row.
        allowed: [V] bool, the tokens that may be taken; a word is not its own candidate.
        count: K.

    Returns:
        [P, K] int32 for each row.
    """
    rows = zip(ids, places, strict=True)
    tokens = np.unique(np.concatenate([*(row[spots] for row, spots in rows), np.empty(0, np.int32)]))
    table = table[: len(allowed)]
    directions = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    nearest = np.zeros((len(table), count), np.int32)
    for part in np.array_split(tokens, -(-len(tokens) // 1024) or 1):
        likeness = np.where(allowed, directions[part] @ directions.T, -np.inf)
        likeness[np.arange(len(part)), part] = -np.inf
        nearest[part] = np.argsort(-likeness, axis=1, kind="stable")[:, :count]
    return [nearest[row[spots]] for row, spots in zip(ids, places, strict=True)]


def mlm_candidates(
    module: MaskedLM,
    params: Params,
    encoded: Encoded,
    places: Sequence[np.ndarray],
    allowed: np.ndarray,
    mask_id: int,
    count: int,
) -> list[np.ndarray]:
    """The words that are most probable in the place of each word, which is hidden with every seventh other.

    Args:
        module: a masked language model.
        params: its parameters.
        encoded: rows.
        places: of the words of each row.
        allowed: [V] bool, the tokens that may be taken; a word is not its own candidate.
        mask_id: id of [MASK].
        count: K.

    Returns:
        [P, K] int32 for each row.
    """
    placed = jax.device_put(params)
    blocked = jnp.where(jnp.asarray(allowed), 0.0, -jnp.inf)

    @jax.jit
    def most_probable(params: Params, inputs: EncoderInputs, spots: Any, words: Any) -> Any:
        hidden: Any = module.apply({"params": params}, inputs, method="activations")
        chosen = jnp.take_along_axis(hidden.hidden, spots[:, :, None], axis=1)
        logits: Any = module.apply({"params": params}, chosen, method="mlm_logits")
        # Some vocabularies are smaller than the table.
        own = jnp.arange(logits.shape[-1])[None, None] == words[:, :, None]
        logits = jnp.where(own, -jnp.inf, logits)
        logits = logits[..., : len(allowed)] + blocked[None, None]
        return jax.lax.top_k(logits, count)[1]

    found = [np.zeros((len(spots), count), np.int32) for spots in places]
    buckets = choose_buckets(encoded.lengths, limit=module.config.max_length)
    for length, rows in evaluation_plan(encoded.lengths, buckets, _BATCH):
        inputs, _ = collate_inputs(encoded, rows, length, _BATCH)
        if module.config.type_vocab_size < 2:
            inputs = inputs._replace(token_type_ids=None)
        for first in range(_EVERY):
            spots = np.zeros((_BATCH, -(-length // _EVERY)), np.int32)
            words, hidden = np.full(spots.shape, _NO_WORD, np.int32), np.array(inputs.ids)
            chosen = [places[row][first::_EVERY] for row in rows]
            for place, (row, own) in enumerate(zip(rows, chosen, strict=True)):
                spots[place, : len(own)], words[place, : len(own)] = own, encoded.ids[row][own]
                hidden[place, own] = mask_id
            if any(map(len, chosen)):
                best = np.asarray(most_probable(placed, inputs._replace(ids=hidden), spots, words))
                for place, (row, own) in enumerate(zip(rows, chosen, strict=True)):
                    found[row][first::_EVERY] = best[place, : len(own)]
    return found
