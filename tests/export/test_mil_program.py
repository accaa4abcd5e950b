"""Core ML packages against the JAX models they were made of, read again and computed by coremltools' own numbers.

coremltools knows what each operator gives of constants, for its folding of constants. So every operator of a package
that was read again is built once more, on constants: Core ML itself runs on Apple's systems alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import FAMILY_HEADS, made, real, rows

from distil_jax.export import FORMATS, WriteOptions
from distil_jax.export.jax_network import network_of
from distil_jax.export.source import Source
from distil_jax.models import EncoderInputs, Pooling, pool

pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("coremltools", reason="needs coremltools")


def reduced(function: Any) -> Any:
    return lambda x, axes, keep_dims: function(x, axis=tuple(int(axis) for axis in axes), keepdims=bool(keep_dims))


# Operators that coremltools 9.0 has no numbers for, or none with NumPy 2.4, which takes no `keepdims` of its own type.
OWN: dict[str, Any] = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "reduce_sum": reduced(np.sum),
    "reduce_max": reduced(np.max),
    "reduce_l2_norm": reduced(lambda x, **named: np.sqrt(np.sum(x * x, **named))),
}


def written(source: Source, folder: Path, name: str = "coreml") -> Path:
    path = folder / f"{name}.mlpackage"
    FORMATS[name].write(source, path, WriteOptions())
    return path


def loaded(path: Path) -> tuple[Any, Any]:
    """The package's description, and the function that it computes."""
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load

    model: Any = coremltools.models.MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    return spec.description, load(spec, spec.specificationVersion, model.weights_dir).functions["main"]


def evaluated(path: Path, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by name, of inputs by name."""
    import coremltools
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import Function

    description, function = loaded(path)
    values: dict[str, Any] = {one.name: feed[one.name] for one in description.input}

    def value(given: Any) -> Any:
        return [value(one) for one in given] if isinstance(given, (list, tuple)) else values[given.name]

    with Function({}, opset_version=coremltools.target.iOS17):
        for one in function.operations:
            if one.op_type == "const":
                values[one.outputs[0].name] = one.outputs[0].val
                continue
            given = {name: value(x) for name, x in one.inputs.items() if x is not None}
            if one.op_type in OWN:
                results = [OWN[one.op_type](**given)]
            elif one.op_type.startswith("constexpr"):
                results = [one.materialized_val_inference()]
            else:
                made_again = getattr(Builder, one.op_type)(**given)
                results = [x.val for x in (made_again if isinstance(made_again, (list, tuple)) else [made_again])]
            assert all(result is not None for result in results), f"{one.op_type} has no numbers"
            values |= {output.name: result for output, result in zip(one.outputs, results, strict=True)}
    return {one.name: values[one.name] for one in function.outputs}


def fed(inputs: EncoderInputs) -> dict[str, Any]:
    return {"input_ids": inputs.ids, "attention_mask": inputs.mask, "token_type_ids": inputs.token_type_ids}


def error(path: Path, source: Source, length: int) -> float:
    """The largest of the package, as a share of the model's largest output."""
    inputs = rows(source, length, 1)
    outputs = [*evaluated(path, fed(inputs)).values()]
    found = np.stack(outputs, axis=-1) if len(outputs) > 1 else outputs[0]
    expected = network_of(source.encoder, source.params, source.head)(inputs)
    assert found.shape == expected.shape and found.dtype == np.float32
    one, two = (real(values, inputs, source) for values in (found, expected))
    return float(np.abs(one - two).max() / np.abs(two).max())


@pytest.mark.parametrize(("family", "head"), FAMILY_HEADS)
def test_a_package_computes_what_the_model_computes(family: str, head: str, tmp_path: Path) -> None:
    source = made(family, head)
    path = written(source, tmp_path)
    for length in (24, 2):
        assert error(path, source, length) < 0.03, "more than rounding to float16"


@pytest.mark.parametrize("activation", ["gelu_new", "relu", "silu"])
def test_every_activation_is_written(activation: str, tmp_path: Path) -> None:
    source = made("bert", "mlm", activation=activation)
    assert error(written(source, tmp_path), source, 9) < 0.03


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
def test_vectors_of_texts_are_a_second_output(mode: Any, tmp_path: Path) -> None:
    source = made("bert", "none", pooling=Pooling(mode, normalize=mode != "max"))
    inputs = rows(source, 9, 1)
    found = evaluated(written(source, tmp_path), fed(inputs))["sentence_embedding"]
    hidden = network_of(source.encoder, source.params, None)(inputs)
    assert source.pooling is not None
    expected = pool(hidden, np.asarray(inputs.mask), source.pooling)
    np.testing.assert_allclose(found, expected, atol=0.01 * np.abs(expected).max())


def test_8_bits_make_the_package_smaller_and_are_near(tmp_path: Path) -> None:
    source = made("bert", "token", vocabulary=4096)
    paths = [written(source, tmp_path, name) for name in ("coreml", "coreml-int8")]
    small, large = (path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin" for path in (paths[1], paths[0]))
    assert small.stat().st_size < 0.65 * large.stat().st_size
    assert 0.001 < error(paths[1], source, 12) < 0.15


def test_the_tied_table_is_stored_once(tmp_path: Path) -> None:
    source = made("distilbert", "mlm", vocabulary=4096)
    weights = written(source, tmp_path) / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    assert 2 * 4096 * 32 < weights.stat().st_size < 3 * 4096 * 32


def test_one_row_of_any_length_is_taken(tmp_path: Path) -> None:
    description, _ = loaded(written(made("bert", "question"), tmp_path))
    assert [one.name for one in description.input] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [one.name for one in description.output] == ["start_logits", "end_logits"]
    for one in description.input:
        ranges = [(size.lowerBound, size.upperBound) for size in one.type.multiArrayType.shapeRange.sizeRanges]
        assert ranges == [(1, 1), (1, 26)]
