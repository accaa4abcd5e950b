"""LiteRT files, run by LiteRT, against the JAX models they were made of: every head and family."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import assert_computes_the_same, made, real, rows

from distil_jax.errors import UserError
from distil_jax.export import FORMATS, WriteOptions, open_litert
from distil_jax.export.jax_network import network_of
from distil_jax.export.litert_model import litert_model, quantized
from distil_jax.models import Pooling, pool

HEADS = ("mlm", "none", "sequence", "token", "question", "choice")
FAMILY_HEADS = [
    *(("bert", head) for head in HEADS),
    ("distilbert", "sequence"),
    ("roberta", "token"),
    ("mpnet", "none"),
    ("electra", "replaced"),
]


@pytest.fixture(autouse=True)
def installed() -> None:
    for module in ("litert_converter", "ai_edge_litert", "ai_edge_quantizer"):
        pytest.importorskip(module, reason="needs the extra litert, which is 370 MB")


def written(source: Any, path: Path, lengths: tuple[int, ...]) -> Path:
    path.write_bytes(litert_model(source, lengths))
    return path


@pytest.mark.parametrize(("family", "head"), FAMILY_HEADS)
def test_a_file_computes_what_the_model_computes(family: str, head: str, tmp_path: Path) -> None:
    source = made(family, head)
    assert_computes_the_same(
        open_litert(written(source, tmp_path / "model.tflite", (8, 24))), source
    )  # 7 is filled up to 8


@pytest.mark.parametrize("activation", ["gelu_new", "relu", "silu"])
def test_every_activation_is_written(activation: str, tmp_path: Path) -> None:
    source = made("bert", "sequence", activation=activation)
    inputs = rows(source, 9)
    found = open_litert(written(source, tmp_path / "model.tflite", (9,)))(inputs)
    np.testing.assert_allclose(found, network_of(source.encoder, source.params, source.head)(inputs), atol=3e-5)


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
def test_vectors_of_texts_are_a_second_output(mode: Any, tmp_path: Path) -> None:
    from ai_edge_litert.interpreter import Interpreter

    source = made("bert", "none", pooling=Pooling(mode, normalize=mode != "max"))
    path, inputs = written(source, tmp_path / "model.tflite", (9,)), rows(source, 9, count=1)
    hidden = network_of(source.encoder, source.params, None)(inputs)
    runner = Interpreter(model_path=str(path)).get_signature_runner("tokens_9")
    found = runner(input_ids=inputs.ids, attention_mask=inputs.mask, token_type_ids=inputs.token_type_ids)
    assert source.pooling is not None
    np.testing.assert_allclose(found["sentence_embedding"], pool(hidden, inputs.mask, source.pooling), atol=3e-5)


@pytest.mark.parametrize("head", ["sequence", "question"])
def test_quantised_files_are_near(head: str, tmp_path: Path) -> None:
    source = made("bert", head)
    inputs = rows(source, 12)
    (tmp_path / "model.tflite").write_bytes(quantized(litert_model(source, (12,))))
    found = open_litert(tmp_path / "model.tflite")(inputs)
    expected = network_of(source.encoder, source.params, source.head)(inputs)
    one, two = (real(values, inputs, source) for values in (found, expected))
    assert np.sqrt(np.mean((one - two) ** 2)) < 0.2 * two.std()


def test_lengths_share_their_weights() -> None:
    source = made("distilbert", "sequence", vocabulary=20_000)
    one, two = len(litert_model(source, (8,))), len(litert_model(source, (8, 16)))
    assert two - one < 0.1 * one
    table = source.encoder.vocab_size * source.encoder.hidden_size
    assert len(quantized(litert_model(source, (8, 16)))) < 2 * table  # a byte a number, and not a second table


def test_longer_rows_than_the_file_takes_are_refused(tmp_path: Path) -> None:
    source = made("bert", "sequence")
    compute = open_litert(written(source, tmp_path / "model.tflite", (8,)))
    with pytest.raises(UserError, match=r"20 tokens.* 8.*--lengths"):
        compute(rows(source, 20)._replace(mask=None))


def test_usual_lengths_end_with_what_the_model_takes(tmp_path: Path) -> None:
    source = made("bert", "sequence")  # 26 positions
    with pytest.raises(UserError, match=r"--lengths 64.* 26 tokens"):
        FORMATS["litert"].write(source, tmp_path / "model.tflite", WriteOptions(lengths=(8, 64)))
    FORMATS["litert"].write(source, tmp_path / "model.tflite", WriteOptions())
    from ai_edge_litert.interpreter import Interpreter

    assert [*Interpreter(model_path=str(tmp_path / "model.tflite")).get_signature_list()] == ["tokens_26"]


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"nothing of the kind" * 10)
    with pytest.raises(UserError, match=r"model\.tflite.*LiteRT cannot read it"):
        open_litert(tmp_path / "model.tflite")


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = dataclasses.replace(FORMATS["litert-int8"], modules=("no_such_module",))
    with pytest.raises(UserError, match=r'no_such_module: pip install "distil_jax\[litert\]"'):
        lacking.require_installed()
