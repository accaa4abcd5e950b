"""`distil-jax trim`: the same results from fewer rows, for every head, and folders that transformers loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distil_jax import cli, encode, from_pretrained
from distil_jax.config import TrimArguments
from distil_jax.errors import UserError
from distil_jax.export import load_predictor, predict, trim_vocabulary
from distil_jax.hf import load_tokenizer, read_json, read_pooling, read_pretrained, save_pretrained
from distil_jax.models import Pooling

KEPT = ["the cat sat on a mat.", "a dog ran fast", "big red fish, old blue bird"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "corpus.txt").write_text("\n".join(KEPT), encoding="utf-8")
    return tmp_path / "corpus.txt"


def trimmed(model: str | Path, corpus: Path, output: Path, **more: Any) -> Path:
    trim_vocabulary(TrimArguments(str(model), (str(corpus),), str(output), **(more or {"min_count": 1})))
    return output


def test_hidden_states_are_the_same_bits(model_folder: Callable[..., str], corpus: Path, tmp_path: Path) -> None:
    source = model_folder()
    folder = trimmed(source, corpus, tmp_path / "out")
    kept = read_json(folder / "kept_tokens.json")["old_ids"]
    tokenizers = load_tokenizer(source), load_tokenizer(folder)
    models = from_pretrained(source), from_pretrained(folder)
    assert models[1][0].config.vocab_size == len(kept) < tokenizers[0].vocab_size
    inputs = [tokenizer(KEPT) for tokenizer in tokenizers]
    np.testing.assert_array_equal(np.array(kept)[inputs[1].ids], inputs[0].ids)
    hidden, logits = (
        [
            np.asarray(module.apply({"params": params}, *given, method=method))
            for (module, params), given in zip(models, inputs, strict=True)
        ]
        for method in ("encode", "__call__")
    )
    np.testing.assert_array_equal(hidden[1], hidden[0])
    before, after = logits
    np.testing.assert_allclose(after, before[..., kept], atol=1e-6)  # a product of other columns rounds otherwise


@pytest.mark.parametrize(("name", "family"), [("classes", "bert"), ("score", "distilbert"), ("tags", "bert")])
def test_every_head_predicts_the_same(
    name: str, family: str, task_folder: Callable[..., Path], corpus: Path, tmp_path: Path
) -> None:
    source = task_folder(name, family)
    folder = trimmed(source, corpus, tmp_path / "out")
    rows: list[Any] = [text.split() for text in KEPT] if name == "tags" else KEPT
    before, after = ([*predict(load_predictor(path), rows)] for path in (source, folder))
    assert after == before


def test_transformers_loads_it(model_folder: Callable[..., str], corpus: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    source = model_folder()
    folder = trimmed(source, corpus, tmp_path / "out")
    kept = read_json(folder / "kept_tokens.json")["old_ids"]
    logits, rows = [], []
    for path in (source, folder):
        model, report = AutoModelForMaskedLM.from_pretrained(path, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        tokenizer = AutoTokenizer.from_pretrained(path)
        ids = tokenizer(KEPT[0])["input_ids"]
        rows.append([kept[number] for number in ids] if path == folder else ids)
        with torch.no_grad():
            logits.append(model.eval()(input_ids=torch.tensor([ids])).logits.numpy())
    assert rows[0] == rows[1]
    np.testing.assert_allclose(logits[1], logits[0][..., kept], atol=1e-6)


def test_pooling_and_prediction_settings_stay(model_folder: Callable[..., str], corpus: Path, tmp_path: Path) -> None:
    source = model_folder()
    config, params, *_ = read_pretrained(source)
    pooling, extra = Pooling("mean", True, 20), {"distil_jax": {"max_length": 20}}
    tokenizer = load_tokenizer(source)
    save_pretrained(tmp_path / "in", config, params, tokenizer=tokenizer, pooling=pooling, extra=extra, readme="# Mine")
    folder = trimmed(tmp_path / "in", corpus, tmp_path / "out")
    assert read_pooling(folder) == pooling and read_json(folder / "config.json")["distil_jax"] == {"max_length": 20}
    np.testing.assert_array_equal(encode(folder, KEPT), encode(tmp_path / "in", KEPT))
    assert (folder / "README.md").read_text().startswith("# Mine\n")


def test_how_many_tokens_stay(model_folder: Callable[..., str], corpus: Path, tmp_path: Path) -> None:
    source = model_folder()
    sizes = {}
    for name, more in {"few": {"size": 12}, "half": {"coverage": 0.5}, "all": {"coverage": 1.0}}.items():
        found = trim_vocabulary(TrimArguments(source, (str(corpus),), str(tmp_path / name), **more))
        sizes[name] = found.tokens[1]
        assert found.coverage >= more.get("coverage", 0) and found.lines == len(KEPT)
        assert found.changed == (0 if name == "all" else found.changed)
        assert "parameters" in found.table()
    assert sizes["few"] == 12 and sizes["few"] < sizes["half"] < sizes["all"]


def test_columns_of_a_table(model_folder: Callable[..., str], tmp_path: Path) -> None:
    rows = [{"one": KEPT[0], "two": KEPT[1]}, {"one": KEPT[2], "two": KEPT[0]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = trimmed(model_folder(), tmp_path / "rows.jsonl", tmp_path / "out", min_count=1, text_column=("one", "two"))
    tokens = {*load_tokenizer(folder).tokens()}
    assert {"dog", "fish", "mat"} <= tokens and "moon" not in tokens


@pytest.mark.parametrize(
    ("flags", "fact"),
    [
        ([], "--coverage"),
        (["--coverage", "0.9", "--size", "50"], "--size"),
        (["--size", "3"], "--size 3"),
        (["--coverage", "1.5"], "--coverage"),
        (["--min-count", "1", "--text-column", "body", "--corpus", "rows.jsonl"], "body"),
        (["--min-count", "1", "--corpus", "missing.txt"], "missing.txt"),
        (["--min-count", "1", "--corpus", "bad.txt"], "--on-error skip"),
        (["--min-count", "1", "--on-error", "skip", "--corpus", "bad.txt"], "no text"),
        (["--min-count", "1", "--corpus", "missing.txt", "--output", str(Path(__file__).parent)], "not empty"),
    ],
)
def test_mistakes_are_one_line(
    flags: list[str], fact: str, model_folder: Callable[..., str], corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (corpus.parent / "rows.jsonl").write_text('{"text": "the cat"}\n')
    (corpus.parent / "bad.txt").write_bytes(b"the \xe4 cat\n")
    flags = [str(corpus.parent / one) if "." in one and not one[0].isdigit() else one for one in flags]
    files = [] if "--corpus" in flags else ["--corpus", str(corpus)]
    assert cli.main(["trim", model_folder(), *files, "--output", str(corpus.parent / "out"), *flags]) == 2
    error = capsys.readouterr().err
    assert fact in error and error.count("\n") == 1
    assert not (corpus.parent / "out").exists()


def test_nothing_to_leave_out(model_folder: Callable[..., str], tiny_inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="all"):
        trimmed(model_folder(), tiny_inputs / "vocab.txt", tmp_path / "out")
