"""Copies of rows with other words: against a plain form, the same every time, and in a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from distil_jax.config import Config
from distil_jax.errors import UserError
from distil_jax.hf import from_pretrained, load_tokenizer
from distil_jax.models import MaskedLM
from distil_jax.runs import read_metrics
from distil_jax.tasks import Encoded, replace_words, whole_words
from distil_jax.training import augmentation
from distil_jax.training.augmentation import AUGMENTED_FILE, mlm_candidates, nearest_words
from distil_jax.training.finetune import finetune


def encoded(rows: list[list[int]]) -> Encoded:
    ids = [np.array(row, np.int32) for row in rows]
    return Encoded(ids, [np.zeros_like(row) for row in ids], None, np.array([len(row) for row in ids], np.int32), 0, ())


def test_words_of_one_token_are_found() -> None:
    continuation = np.array([False, False, False, False, True, False])
    ids = np.array([1, 3, 4, 3, 5, 5, 4, 4, 2])  # special, a word of two tokens, two words, one of three, special
    assert np.flatnonzero(whole_words(ids, continuation, (1, 2))).tolist() == [3, 4]


def test_words_are_replaced_by_their_candidates_at_the_wanted_rate() -> None:
    ids, places = np.arange(1000, dtype=np.int32), np.arange(1, 1000, 2)
    candidates = np.stack([places + 5000, places + 9000], axis=1)
    copy = replace_words(ids, places, candidates, 0.4, np.random.default_rng(1))
    assert (copy[::2] == ids[::2]).all()
    changed = copy[places] != ids[places]
    assert 0.33 < changed.mean() < 0.47
    assert {5000, 9000} == {*(copy[places] - ids[places])[changed]}
    assert (replace_words(ids, places, candidates, 0.4, np.random.default_rng(1)) == copy).all()


def test_the_nearest_words_are_those_of_the_largest_cosine() -> None:
    table = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    allowed = np.arange(30) > 4
    ids, places = [np.array([1, 7, 9, 2], np.int32)], [np.array([1, 2])]
    (found,) = nearest_words(table, ids, places, allowed, 3)
    for token, words in zip((7, 9), found, strict=True):
        cosines = [table[token] @ other / np.linalg.norm(token) / np.linalg.norm(other) for other in table]
        expected = [n for n in np.argsort(cosines)[::-1] if allowed[n] and n != token][:3]
        assert words.tolist() == expected
    longer = np.concatenate([table, table])  # as a table that is filled up to a round size
    np.testing.assert_array_equal(nearest_words(longer, ids, places, allowed, 3)[0], found)


def test_a_row_that_is_longer_than_the_model_of_words_takes_is_refused(
    task_config: Callable[..., Config],
    model_folder: Callable[..., str],
    learner: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = task_config("classification", tmp_path, {"augment.method": "mlm", "augment.model": model_folder()})
    training: Any = SimpleNamespace(tokenizer=load_tokenizer(learner))
    monkeypatch.setattr(augmentation, "load_tokenizer", lambda _: training.tokenizer)
    longest = augmentation._source(config, training, 8)[0].max_length
    with pytest.raises(UserError, match=f"takes {longest} tokens, and the longest row has {longest + 1}"):
        augmentation._source(config, training, longest + 1)


def test_masked_words_have_the_models_most_probable_ones(model_folder: Callable[..., str], tiny_inputs: Path) -> None:
    folder, tokenizer = model_folder(), load_tokenizer(tiny_inputs / "tokenizer")
    module, params = from_pretrained(folder)
    assert isinstance(module, MaskedLM)
    rows = encoded([[2, *range(7, 19), 3], [2, 9, 8, 3]])
    places = [np.arange(1, 13), np.array([1, 2])]
    allowed = np.arange(tokenizer.vocab_size) > 6
    found = mlm_candidates(module, params, rows, places, allowed, tokenizer.mask_id, 4)
    assert [words.shape for words in found] == [(12, 4), (2, 4)]
    for row, place in ((0, 0), (0, 8), (1, 1)):
        ids = rows.ids[row].copy()
        hidden = places[row][place % 7 :: 7]
        ids[hidden] = tokenizer.mask_id
        logits: Any = module.apply({"params": params}, ids[None])
        scores = np.where(allowed, np.asarray(logits)[0, places[row][place]], -np.inf)
        scores[rows.ids[row][places[row][place]]] = -np.inf
        assert found[row][place].tolist() == np.argsort(-scores)[:4].tolist()


def test_a_run_learns_from_its_copies_and_keeps_them(
    task_config: Callable[..., Config],
    task_files: dict[str, dict[str, Any]],
    learner: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from distil_jax.export import export

    finetune(task_config("classification", tmp_path / "teacher", {"training.steps": 2}))
    export(tmp_path / "teacher", tmp_path / "model")
    changes = {"teacher.path": str(tmp_path / "model"), "augment.method": "embedding", "augment.copies": 3}
    config = task_config("classification", tmp_path / "run", {**changes, "training.steps": 2})
    finetune(config)
    first = np.load(tmp_path / "run" / AUGMENTED_FILE)
    assert 36 < len(first["rows"]) <= 108  # of 36 rows
    longer = task_config("classification", tmp_path / "run", {**changes, "training.steps": 3, "training.extend": True})
    with monkeypatch.context() as patch:
        patch.setattr(augmentation, "nearest_words", lambda *_: pytest.fail("made again"))
        found = finetune(longer)
    assert found.result.resumed_from == 2
    assert all(row["metrics"]["loss_kl"] > 0 for row in read_metrics(tmp_path / "run", "train"))
    (tmp_path / "run" / AUGMENTED_FILE).write_bytes(b"PK damaged")
    with pytest.raises(UserError, match=AUGMENTED_FILE):
        finetune(longer)


@pytest.mark.parametrize(
    ("kind", "changes", "reason"),
    [
        ("classification", {"augment.method": "embedding"}, "teacher.path"),
        ("classification", {"augment.method": "mlm", "teacher.path": "same"}, "no masked-language-model head"),
    ],
)
def test_what_cannot_be_augmented_is_refused(
    kind: str,
    changes: dict[str, Any],
    reason: str,
    task_config: Callable[..., Config],
    task_folder: Callable[..., Path],
    tmp_path: Path,
) -> None:
    if "teacher.path" in changes:
        changes = {**changes, "teacher.path": str(task_folder("classes")), "model.initial": str(task_folder("classes"))}
        changes |= {"task.labels": ["bad", "fair", "good"]}
    with pytest.raises(UserError, match=reason):
        finetune(task_config(kind, tmp_path / "run", changes))
    assert not (tmp_path / "run").exists()
