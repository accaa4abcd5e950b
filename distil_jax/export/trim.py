"""`distil-jax trim`: a model with the tokens of a corpus alone, which computes the same for texts that use no others.

In a small student the embeddings of words are most of the weights.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distil_jax.config import TrimArguments
from distil_jax.data.corpus import lines_of
from distil_jax.errors import FaultError, UserError
from distil_jax.export.card import card_of_folder, card_pictures
from distil_jax.export.prediction_settings import own_fields
from distil_jax.hf import (
    PretrainedModel,
    Tokenizer,
    Vocabulary,
    load_tokenizer,
    locate,
    named_kind,
    read_json,
    read_pooling,
    read_pretrained,
    read_task_model,
    require_free,
    save_pretrained,
)
from distil_jax.tables import markdown

MAPPING_FILE = "kept_tokens.json"
_BATCH = 1000  # lines tokenised at once


@dataclasses.dataclass(frozen=True)
class Trimmed:
    """What `trim_vocabulary` has done.

    Attributes:
        tokens: of the vocabulary, before and after.
        parameters: of the model, before and after.
        megabytes: of the weights on disk, before and after.
        coverage: share of the corpus' tokens that are kept.
        lines: of the corpus.
        changed: those that are split otherwise.
        pieces: tokens of the corpus, before and after.
    """

    tokens: tuple[int, int]
    parameters: tuple[int, int]
    megabytes: tuple[float, float]
    coverage: float
    lines: int
    changed: int
    pieces: tuple[int, int]

    def table(self) -> str:
        """All of it in Markdown."""
        share, changed = f"{100 * self.coverage:.3f} %", f"{100 * self.changed / self.lines:.2f} %"
        per_line = [f"{count / self.lines:.2f}" for count in self.pieces]
        rows = [
            ["tokens of the vocabulary", *(f"{count:,}" for count in self.tokens)],
            ["parameters", *(f"{count:,}" for count in self.parameters)],
            ["MB of weights", *(f"{size:.1f}" for size in self.megabytes)],
            ["tokens of the corpus kept", "", share],
            ["tokens a line", *per_line],
            ["lines split otherwise", "", f"{changed} ({self.changed:,} of {self.lines:,})"],
        ]
        return markdown(["", "before", "after"], rows)


def trim_vocabulary(given: TrimArguments) -> Trimmed:
    """Write a model with the tokens that a corpus needs.

    Special tokens, single characters and bytes are kept, so that every text can still be written. Rows of the
    embeddings and of the masked-language-model head are those of the kept tokens; everything else is as it was. The
    folder holds kept_tokens.json, the old id of every token.

    Raises:
        UserError: no such model or text, a tokenizer that cannot be trimmed, or not one of coverage, count and size.
        FaultError: a line of kept tokens is split otherwise; nothing is written.
    """
    require_free(given.output, given.overwrite)
    folder = locate(given.model)
    raw = read_json(folder / "config.json")
    kind = named_kind(raw)
    model = read_pretrained(folder) if kind is None else read_task_model(folder, kind)
    tokenizer = load_tokenizer(given.model)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"{given.model}: the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}"
        )
    vocabulary = Vocabulary(tokenizer)
    counts = _counts(tokenizer, given)
    kept = np.array(_chosen(vocabulary, counts, given))
    trimmed = vocabulary.trimmed(kept.tolist(), model.config.family)
    found = _compared(tokenizer, trimmed, kept, given)
    if len(kept) == model.config.vocab_size:
        raise UserError(f"{given.model}: all {len(kept)} tokens would be kept; lower --coverage or raise --min-count")
    config = dataclasses.replace(model.config, vocab_size=len(kept), pad_token_id=trimmed.pad_id)
    params = _rows_of(model, kept)
    save_pretrained(
        given.output,
        config,
        params,
        head=model.head,
        tokenizer=trimmed,
        pooling=read_pooling(folder),
        readme=_card(folder, len(kept)),
        extra=own_fields(raw),
        files={MAPPING_FILE: json.dumps({"old_ids": kept.tolist()}) + "\n", **card_pictures(folder)},
        overwrite=given.overwrite,
    )
    sizes = [sum(leaf.size for leaf in _leaves(tree)) for tree in (model.params, params)]
    return Trimmed(
        tokens=(model.config.vocab_size, len(kept)),
        parameters=(sizes[0], sizes[1]),
        megabytes=(4e-6 * sizes[0], 4e-6 * sizes[1]),
        coverage=float(counts[kept].sum() / max(counts.sum(), 1)),
        **found,
    )


def _leaves(tree: Any) -> Iterator[np.ndarray]:
    for value in tree.values():
        yield from _leaves(value) if isinstance(value, dict) else [value]


def _batches(given: TrimArguments) -> Iterator[list[str]]:
    """The lines of the corpus, of each of its columns of texts."""
    batch: list[str] = []
    for line in lines_of(given.corpus, given.text_column, given.on_error):
        batch.append(line)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _ids(tokenizer: Tokenizer, batch: list[str]) -> list[np.ndarray]:
    found = tokenizer.backend.encode_batch_fast(batch, add_special_tokens=False)
    return [np.asarray(one.ids, np.int64) for one in found]


def _counts(tokenizer: Tokenizer, given: TrimArguments) -> np.ndarray:
    """How often each token occurs [vocabulary] int64; the unknown one counts as not at all."""
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for batch in _batches(given):
        counts += np.bincount(np.concatenate(_ids(tokenizer, batch)), minlength=len(counts))
    counts[tokenizer.unk_id] = 0
    return counts


def _chosen(vocabulary: Vocabulary, counts: np.ndarray, given: TrimArguments) -> list[int]:
    """The ids that are kept, ascending: what is required, then the most frequent ones with what they are joined of."""
    kept = {one for number in vocabulary.required for one in vocabulary.needed(number)}
    if given.size and given.size < len(kept):
        raise UserError(
            f"--size {given.size}: special tokens, single characters and bytes alone are {len(kept)}; raise it"
        )
    total, covered = int(counts.sum()), int(counts[[*kept]].sum())
    for number in np.argsort(-counts, kind="stable").tolist():
        if counts[number] < max(given.min_count, 1) or (given.coverage and covered >= given.coverage * total):
            break
        needed = vocabulary.needed(number) - kept
        if given.size and len(kept) + len(needed) > given.size:
            continue
        kept |= needed
        covered += int(counts[[*needed]].sum())
    return sorted(kept)


def _compared(old: Tokenizer, new: Tokenizer, kept: np.ndarray, given: TrimArguments) -> dict[str, Any]:
    """The fields of `Trimmed` about lines, by splitting all of them by both tokenizers."""
    place = np.full(old.vocab_size, -1)
    place[kept] = np.arange(len(kept))
    lines, changed, pieces = 0, 0, np.zeros(2, np.int64)
    for batch in _batches(given):
        for text, before, after in zip(batch, _ids(old, batch), _ids(new, batch), strict=True):
            same = np.array_equal(place[before], after)
            if not same and (place[before] >= 0).all() and old.unk_id not in before:
                raise FaultError(f"{text[:60]!r}: is split otherwise, though all of its tokens are kept; report it")
            lines, changed = lines + 1, changed + (not same)
            pieces += np.array([len(before), len(after)])
    if not lines:
        raise UserError(f"--corpus {' '.join(given.corpus)}: holds no text that can be read; check the files")
    return {"lines": lines, "changed": changed, "pieces": (int(pieces[0]), int(pieces[1]))}


def _rows_of(model: PretrainedModel, kept: np.ndarray) -> dict[str, Any]:
    """The parameters with the rows of the kept tokens alone, in the tree of `model`."""
    encoder = model.params["encoder"]
    embeddings = encoder["embeddings"]
    word = {"embedding": np.asarray(embeddings["word"]["embedding"])[kept]}
    params = {**model.params, "encoder": {**encoder, "embeddings": {**embeddings, "word": word}}}
    if head := params.get("mlm_head"):
        params["mlm_head"] = {**head, "bias": np.asarray(head["bias"])[kept]}
    return params


def _card(folder: Path, tokens: int) -> str:
    """The model's card with a section on its vocabulary."""
    return (
        f"{card_of_folder(folder, 'Trimmed model')}\n\n## Vocabulary\n\nTrimmed to {tokens:,} tokens by "
        f"`distil-jax trim`; {MAPPING_FILE} has the old id of each. Texts that use no other tokens get the same "
        "results as before.\n"
    )
