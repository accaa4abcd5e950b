"""ONNX files against the JAX models they were made of: every head, family, activation and pooling."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import FAMILIES, FAMILY_HEADS, HIDDEN, VOCABULARY, assert_computes_the_same, made, real, rows

from distil_jax.errors import UserError
from distil_jax.export.jax_network import network_of
from distil_jax.export.onnx_graph import Precision, block_quantized
from distil_jax.export.onnx_model import onnx_model
from distil_jax.export.onnx_session import open_onnx
from distil_jax.export.source import Source
from distil_jax.models import EncoderInputs, Pooling, TaskModel, pool
from distil_jax.training.task_step import readable

pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")


def written(source: Source, path: Path, precision: Precision = "float32") -> Path:
    model, _ = onnx_model(source, precision)
    import onnx

    onnx.checker.check_model(model, full_check=precision in ("float32", "int8"))
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(("family", "head"), FAMILY_HEADS)
def test_a_file_computes_what_the_model_computes(family: str, head: str, tmp_path: Path) -> None:
    source = made(family, head)
    assert_computes_the_same(open_onnx(written(source, tmp_path / "model.onnx")), source)


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_that_do_not_fill_the_width_are_written(family: str, tmp_path: Path) -> None:
    """As of a model whose other heads were pruned."""
    source = made(family, "sequence", head_size=5)
    assert_computes_the_same(open_onnx(written(source, tmp_path / "model.onnx")), source)


@pytest.mark.parametrize("activation", ["gelu_new", "relu", "silu"])
def test_every_activation_is_written(activation: str, tmp_path: Path) -> None:
    source = made("bert", "mlm", activation=activation)
    inputs = rows(source, 9)
    found = open_onnx(written(source, tmp_path / "model.onnx"))(inputs)
    expected = network_of(source.encoder, source.params, None)(inputs)
    np.testing.assert_allclose(real(found, inputs, source), real(expected, inputs, source), atol=3e-5)


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
def test_vectors_of_texts_are_a_second_output(mode: Any, tmp_path: Path) -> None:
    import onnxruntime

    source = made("bert", "none", pooling=Pooling(mode, normalize=mode != "max"))
    path, inputs = written(source, tmp_path / "model.onnx"), rows(source, 9)
    hidden = network_of(source.encoder, source.params, None)(inputs)
    assert source.pooling is not None
    expected = pool(hidden, np.asarray(inputs.mask), source.pooling)
    session = onnxruntime.InferenceSession(str(path))
    given = ((inputs.ids, "input_ids"), (inputs.mask, "attention_mask"), (inputs.token_type_ids, "token_type_ids"))
    found: Any = session.run(["sentence_embedding"], {name: np.asarray(x, np.int64) for x, name in given})
    np.testing.assert_allclose(found[0], expected, atol=3e-5)


@pytest.mark.parametrize("head", ["mlm", "sequence", "question"])
@pytest.mark.parametrize(("precision", "error"), [("int8", 0.2), ("q8", 0.2), ("q4", 0.7)])
def test_quantised_files_are_near(precision: Precision, error: float, head: str, tmp_path: Path) -> None:
    source = made("bert", head)
    inputs = rows(source, 12)
    found = open_onnx(written(source, tmp_path / "model.onnx", precision))(inputs)
    expected = network_of(source.encoder, source.params, source.head)(inputs)
    one, two = (real(values, inputs, source) for values in (found, expected))
    assert np.sqrt(np.mean((one - two) ** 2)) < error * two.std()


@pytest.mark.parametrize(("family", "head"), [("bert", "sequence"), ("distilbert", "token"), ("electra", "replaced")])
def test_an_int8_file_computes_what_training_for_int8_computes(family: str, head: str, tmp_path: Path) -> None:
    """Of a text alone: products of rounded kernels and inputs, with tables left in float32."""
    source = made(family, head)
    model, _ = onnx_model(source, "int8", frozenset({"word", "position"}))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    together = rows(source, 9)
    ids: Any = np.asarray(together.ids)[:1, :5]
    inputs = EncoderInputs(ids, mask=np.ones_like(ids), token_type_ids=np.asarray(together.token_type_ids)[:1, :5])  # type: ignore[arg-type]
    assert source.head is not None
    trained = TaskModel(source.encoder, source.head, product="int8")
    expected: Any = trained.apply({"params": source.params}, readable(trained, inputs))
    plain = network_of(source.encoder, source.params, source.head)(inputs)
    found = open_onnx(tmp_path / "model.onnx")(inputs)
    assert np.abs(found - expected).max() < 0.1 * np.abs(found - plain).max()


def test_the_tied_table_is_stored_once(tmp_path: Path) -> None:
    source = made("distilbert", "mlm")
    for precision, size in (("float32", 4), ("int8", 1)):
        model, _ = onnx_model(source, precision)  # type: ignore[arg-type]
        tables = [one for one in model.graph.initializer if set(one.dims) == {VOCABULARY, HIDDEN}]
        assert [len(one.raw_data) for one in tables] == [size * VOCABULARY * HIDDEN]


def test_layers_that_are_kept_are_float(tmp_path: Path) -> None:
    source = made("bert", "token")
    names = onnx_model(source, "int8")[1]
    assert {"word", "position", "layer_0/query", "layer_1/ffn_out"} <= {*names}
    inputs = rows(source, 12)
    model, _ = onnx_model(source, "int8", frozenset(names))
    (tmp_path / "kept.onnx").write_bytes(model.SerializeToString())
    found = open_onnx(tmp_path / "kept.onnx")(inputs)
    expected = network_of(source.encoder, source.params, source.head)(inputs)
    np.testing.assert_allclose(real(found, inputs, source), real(expected, inputs, source), atol=3e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_hold_the_kernel_to_half_a_step(bits: int) -> None:
    kernel = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    packed, scales = block_quantized(kernel, bits)
    codes = packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:2], -1)
    values = (codes.astype(np.float32) - (1 << (bits - 1))) * scales[..., None]
    back = values.reshape(6, -1)[:, :40].T
    steps = np.repeat(np.abs(scales), 32, axis=1)[:, :40].T
    assert (np.abs(back - kernel) <= 1.01 * steps).all(), "the largest number of a block has a step to spare"


def test_inputs_and_outputs_have_the_names_that_others_expect() -> None:
    def names(source: Source) -> tuple[list[str], list[str]]:
        graph = onnx_model(source)[0].graph
        return [one.name for one in graph.input], [one.name for one in graph.output]

    three = ["input_ids", "attention_mask", "token_type_ids"]
    assert names(made("bert", "question")) == (three, ["start_logits", "end_logits"])
    assert names(made("distilbert", "mlm")) == (three[:2], ["logits"])
    assert names(made("roberta", "none")) == (three[:2], ["last_hidden_state"])


def test_a_family_that_is_not_written_is_refused() -> None:
    source = made("bert", "mlm")
    other = dataclasses.replace(source, encoder=dataclasses.replace(source.encoder, family="mamba"))
    with pytest.raises(UserError, match="mamba"):
        onnx_model(other)


@pytest.mark.parametrize("contents", [b"", b"nothing of the kind", None])
def test_a_file_that_is_none_is_refused(contents: bytes | None, tmp_path: Path) -> None:
    path = written(made("bert", "sequence"), tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes()[:-200] if contents is None else contents)
    with pytest.raises(UserError, match=r"model\.onnx"):
        open_onnx(path)
