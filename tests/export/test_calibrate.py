"""Layers that lose most stay in float32, the fewest that bring the loss below what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from distil_jax.export import FORMATS, WriteOptions
from distil_jax.export.calibrate import layers_to_keep
from distil_jax.export.check_rows import check_rows
from distil_jax.export.jax_network import network_of
from distil_jax.export.source import read_source

pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")


def test_the_layer_with_an_outlier_is_kept(model_folder: Callable[..., str], tmp_path: Path) -> None:
    source = read_source(model_folder(head=False))
    layer = source.params["encoder"]["layer_1"]
    for part, values in layer["attention_norm"].items():
        layer["attention_norm"][part] = np.where(np.arange(16) == 0, np.float32(0), values)
    kernel = np.array(layer["ffn_in"]["kernel"])
    kernel[0] = 200.0  # of an input that is always 0; beside it 7 bits leave nothing of the others
    layer["ffn_in"]["kernel"] = kernel
    format, path = FORMATS["onnx-int8"], tmp_path / "model.onnx"
    model = network_of(source.encoder, source.params, None)
    rows = check_rows(source, "", None, 0)
    assert format.weights is not None
    assert layers_to_keep(format, source, path, model, rows, 100.0) == frozenset()
    kept = layers_to_keep(format, source, path, model, rows, 1.0)
    assert "layer_1/ffn_in" in kept and len(kept) < len(format.weights(source))
    format.write(source, path, WriteOptions(keep_float=kept))
    assert np.isfinite(path.stat().st_size)
