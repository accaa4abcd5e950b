"""Chunks and batches of predictions: every row once, few shapes, little padding, bounded memory."""

from __future__ import annotations

import collections
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from distil_jax.config import TaskSettings
from distil_jax.data.rows import Arriving
from distil_jax.errors import UserError
from distil_jax.export.predictor import PredictionSummary, Predictor
from distil_jax.hf import load_tokenizer
from distil_jax.models import EncoderConfig, TaskHead, TaskModel
from distil_jax.tasks.encoded import Encoded
from distil_jax.tasks.examples import SequenceExample
from distil_jax.tasks.kinds.sequence import CLASSES
from distil_jax.tasks.requests import Request, usual_reading

HEAD = TaskHead("sequence", labels=("a", "b"), num_outputs=2)


@pytest.fixture(scope="module")
def predictor(tiny_inputs: Path) -> Predictor:
    return make(tiny_inputs, 0.5)


def make(tiny_inputs: Path, weight: float) -> Predictor:
    tokenizer = load_tokenizer(tiny_inputs / "tokenizer")
    encoder = EncoderConfig("bert", tokenizer.vocab_size, 16, 1, 2, 24, 128, type_vocab_size=2, pooler=True)
    model, ids = TaskModel(encoder, HEAD), np.zeros((1, 4), np.int32)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), ids)["params"])
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda x: (weight * random.standard_normal(x.shape)).astype(np.float32), shapes)
    settings = TaskSettings(max_length=120)
    return Predictor(encoder, HEAD, params, tokenizer, settings=settings, reading=usual_reading(CLASSES))


def rows_of(lengths: np.ndarray) -> Encoded:
    ids = [np.zeros(length, np.int32) for length in lengths]
    return Encoded(ids, ids, None, lengths.astype(np.int32), 0, ())


@pytest.mark.parametrize("count", [1, 3, 70, 5000])
@pytest.mark.parametrize("batch_size", [0, 24])
def test_the_plan_holds_every_row_once(predictor: Predictor, count: int, batch_size: int) -> None:
    lengths = np.clip(np.random.default_rng(count).gamma(2.0, 15.0, count).astype(int) + 3, 3, 120)
    plan = [*predictor.network.plan(rows_of(lengths), batch_size)]
    assert sorted(itertools.chain.from_iterable(rows for rows, _, _ in plan)) == list(range(count))
    for rows, length, size in plan:
        assert len(rows) <= size
        assert lengths[rows].max() <= length <= 120
        assert size % jax.device_count() == 0
        assert not batch_size or size <= batch_size
    shapes = collections.Counter((length, size) for _, length, size in plan)
    assert len(shapes) <= 8, "every shape is a program to compile"
    if count == 5000:
        padded = sum(length * size for _, length, size in plan)
        assert padded < 1.35 * lengths.sum()
    if count == 1:
        assert plan[0][2] == jax.device_count()


def test_chunks_grow_and_long_texts_make_them_smaller(predictor: Predictor) -> None:
    summary = PredictionSummary()
    short = (Request(number, SequenceExample("", "a"), {}) for number in range(200))
    sizes = [len(chunk) for chunk in predictor.chunks(short, batch_size=8, summary=summary)]
    assert sizes == [8, 32, 128, 32]
    assert summary.rows == 200
    long = (Request(number, SequenceExample("", "a" * (1 << 21) + "b"), {}) for number in range(7))
    assert [len(chunk) for chunk in predictor.chunks(long, batch_size=8)] == [2, 2, 2, 1]


def test_rows_of_a_pipe_are_answered_before_more_of_them_come(predictor: Predictor) -> None:
    answered = threading.Event()

    def talk() -> Iterator[Request]:
        yield Request(0, SequenceExample("", "the cat"), {})
        if not answered.wait(60):
            raise TimeoutError("the first row is not answered until the next one comes")
        yield Request(1, SequenceExample("", "sat"), {})

    found = []
    for chunk in predictor.chunks(Arriving(talk()), batch_size=8):
        found += [request.id for request, _ in chunk]
        answered.set()
    assert found == [0, 1]


def test_one_of_several_processes_is_refused(tiny_inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(UserError, match="one of 3; start one"):
        make(tiny_inputs, 1.0)


def test_notes_add_up() -> None:
    summary = PredictionSummary()
    summary.add(["1,200 examples cut to 8 tokens"])
    summary.add(["3 examples cut to 8 tokens", "1 questions cut to 9 tokens"])
    assert dict(summary.notes) == {"examples cut to 8 tokens": 1203, "questions cut to 9 tokens": 1}


def test_outputs_that_are_not_finite_are_no_predictions(tiny_inputs: Path) -> None:
    broken: Any = make(tiny_inputs, float("inf"))
    with pytest.raises(UserError, match="not finite"):
        next(broken.chunks([Request(0, SequenceExample("", "the cat"), {})]))


def test_rows_may_be_columns(predictor: Predictor) -> None:
    texts = ["the cat", "a dog sat"]
    assert predictor({"text": texts}) == predictor(texts)
    with pytest.raises(UserError, match="one row"):
        predictor({"text": "the cat"})
