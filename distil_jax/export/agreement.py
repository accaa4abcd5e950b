"""How a file of another format agrees with the model it was made of, on rows that both compute."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from distil_jax.export.check_rows import CheckRows
from distil_jax.export.formats import ExportFormat, Network
from distil_jax.export.source import Source
from distil_jax.models import HEADS, Pooling, TaskHead, pool
from distil_jax.tasks import choose_buckets, evaluation_plan, measure
from distil_jax.training.inference import outputs_of_rows, own_logits

_BATCH, _SHAPES = 8, 4
_VECTORS = 500  # whose cosines with each other are ranked
_TOLERANCE = 1e-3  # of float32 outputs, relative to the largest


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Outputs of a file against the model's.

    Attributes:
        rows: how many were compared.
        about: what they are.
        largest_difference: of two outputs.
        largest_output: of the model.
        equal_decisions: share of rows, or of tokens where each has a decision, with the same class, tag, token, start
            and end, or choice; None: the model decides nothing.
        cosine: mean over tokens, of an encoder without a head.
        rank: Spearman's correlation of what decides nothing: scores of a regression, or the cosines of an encoder's
            vectors with each other; None: it decides, or the rows are too few.
        before: score of the model, as a share; None: labels are not known.
        after: score of the file.
    """

    rows: int
    about: str
    largest_difference: float
    largest_output: float
    equal_decisions: float | None = None
    cosine: float | None = None
    rank: float | None = None
    before: float | None = None
    after: float | None = None

    @property
    def is_exact(self) -> bool:
        """Whether the outputs are the same but for rounding in float32."""
        return self.largest_difference <= _TOLERANCE * max(self.largest_output, 1.0)

    @property
    def points_lost(self) -> float:
        """Of `measure`, of 100."""
        return 100 * self._loss[1]

    @property
    def measure(self) -> str:
        """What points are lost of: the score; where labels are not known, what shows a change without them."""
        return self._loss[0]

    @property
    def _loss(self) -> tuple[str, float]:
        if self.before is not None and self.after is not None:
            return "the score", self.before - self.after
        shares = {
            "equal decisions": self.equal_decisions,
            "the rank correlation": self.rank,
            "the cosine": self.cosine,
        }
        for name, kept in shares.items():
            if kept is not None:
                return name, 1 - kept
        return "the largest output", self.largest_difference / max(self.largest_output, 1e-9)


def compare_file(format: ExportFormat, path: Path, source: Source, model: Network, rows: CheckRows) -> Agreement:
    """Agreement of a written file, run by its own runtime, with the model.

    Raises:
        UserError: a file that its runtime cannot read, or outputs that are not finite.
    """
    assert format.open is not None
    network = format.open(path, source)
    return agreement(network, model, rows, source.head, has_logits=source.has_logits, pooling=source.pooling)


def agreement(
    network: Network,
    model: Network,
    rows: CheckRows,
    head: TaskHead | None,
    *,
    has_logits: bool,
    pooling: Pooling | None = None,
) -> Agreement:
    """Agreement of a network with the model, batch after batch, so that no more than one batch of outputs is held.

    Args:
        network: a file.
        model: what it was made of.
        rows: what is computed.
        head: of the model.
        has_logits: false for an encoder without a head, which decides nothing.
        pooling: how that makes one vector of a text; None: by the mean.

    Raises:
        UserError: outputs that are not finite.
    """
    encoded = rows.encoded
    decides = has_logits and not (head is not None and HEADS[head.kind].has_problem and head.num_outputs == 1)
    ranked = not decides and rows.enough
    own = (lambda row, x: x[: encoded.lengths[row]]) if head is None else own_logits(head, encoded)
    buckets = choose_buckets(encoded.lengths, (), _SHAPES, int(encoded.lengths.max()))
    difference, largest, equal, cosines = 0.0, 0.0, [], []
    numbers: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    logits: tuple[list[Any], list[Any]] = [None] * len(encoded), [None] * len(encoded)
    for length, chosen in evaluation_plan(encoded.lengths, buckets, _BATCH):
        batch = [(chosen, length, len(chosen))]
        both = [outputs_of_rows(encoded, batch, compute, own) for compute in (model, network)]
        for row in chosen:
            expected, found = (outputs[row] for outputs in both)
            largest = max(largest, float(np.abs(expected).max(initial=0)))
            difference = max(difference, float(np.abs(expected - found).max(initial=0)))
            if decides:
                equal.append(np.ravel(decisions(expected, head) == decisions(found, head)))
            elif head is None:
                lengths = np.linalg.norm(expected, axis=-1) * np.linalg.norm(found, axis=-1)
                cosines.append((expected * found).sum(-1) / np.maximum(lengths, 1e-12))
            if ranked:
                for values, one in zip(numbers, (expected, found), strict=True):
                    values.append(np.ravel(one) if head is not None else _vector(one, pooling or Pooling()))
            if rows.score is not None:
                logits[0][row], logits[1][row] = expected, found
    return Agreement(
        rows=len(encoded),
        about=rows.about,
        largest_difference=difference,
        largest_output=largest,
        equal_decisions=float(np.concatenate(equal).mean()) if equal else None,
        cosine=float(np.concatenate(cosines).mean()) if cosines else None,
        rank=rank_correlation(*map(_cosines if head is None else np.concatenate, numbers)) if ranked else None,
        before=None if rows.score is None else rows.score(logits[0]),
        after=None if rows.score is None else rows.score(logits[1]),
    )


def _vector(hidden: np.ndarray, pooling: Pooling) -> np.ndarray:
    return pool(hidden[None], np.ones((1, len(hidden)), np.int32), pooling)[0]


def _cosines(vectors: list[np.ndarray]) -> np.ndarray:
    """Those of each vector with each other, of the first ones where they are many."""
    found = np.stack(vectors[:_VECTORS])
    found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return (found @ found.T)[np.triu_indices(len(found), 1)]


def rank_correlation(expected: np.ndarray, found: np.ndarray) -> float | None:
    """Spearman's correlation of two arrays [N]; None for fewer than three numbers, or equal ones."""
    if len(expected) < 3 or not np.ptp(expected) or not np.ptp(found):
        return None
    return measure(("spearman",), found, expected)["spearman"]


def decisions(logits: np.ndarray, head: TaskHead | None) -> np.ndarray:
    """What the logits of a row mean: numbers of classes, of tags or tokens one a token, or flags."""
    if head is None:
        return np.asarray(logits.argmax(axis=-1))
    kind = HEADS[head.kind]
    if head.problem == "multi_label_classification" or kind.decides_by_sign:
        return logits > 0
    return np.asarray(logits.argmax(axis=0 if kind.chooses_token else -1))
