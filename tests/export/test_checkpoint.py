"""What is exported is what was trained, whole, under the names that transformers expects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from distil_jax.errors import UserError
from distil_jax.export import export, read_run
from distil_jax.hf import load_tokenizer, read_pretrained
from distil_jax.training.checkpoint import Checkpoints


def same(left: Any, right: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, left, right)))


def test_each_checkpoint_is_read_as_it_was(tiny_run: Path) -> None:
    newest, first = read_run(tiny_run), read_run(tiny_run, 1)
    assert (newest.step, first.step) == (2, 1)
    assert same(newest.params, read_run(tiny_run, 2).params)
    assert not same(newest.params, first.params), "training moved nothing between the two checkpoints"
    assert newest.encoder.family == "distilbert"
    assert all(isinstance(leaf, np.ndarray) and leaf.dtype == np.float32 for leaf in jax.tree.leaves(newest.params))
    assert newest.metadata["steps"] == 2


def test_a_process_reads_onto_a_device_of_its_own(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several processes only the first has the first device of all."""
    own, asked = jax.devices()[3], []

    def params(_: Checkpoints, step: int, shapes: Any) -> Any:
        asked.extend(leaf.sharding.device_set for leaf in jax.tree.leaves(shapes))
        return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)

    monkeypatch.setattr(Checkpoints, "params", params)
    monkeypatch.setattr(jax, "local_devices", lambda *_, **__: [own])
    read_run(tiny_run)
    assert asked
    assert all(devices == {own} for devices in asked)


def test_the_folder_holds_the_checkpoint_to_the_bit(tiny_run: Path, tiny_world: Path, tmp_path: Path) -> None:
    trained = export(tiny_run, tmp_path / "model", step=1).source
    config, params, *_ = read_pretrained(tmp_path / "model")
    assert config == trained.encoder
    assert same(params, read_run(tiny_run, 1).params)
    sha256 = load_tokenizer(tmp_path / "model").sha256
    assert sha256 == trained.tokenizer.sha256 == load_tokenizer(tiny_world / "tokenizer").sha256
    assert "step 1 of 2" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


def test_transformers_computes_the_same(tiny_run: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer, DistilBertForMaskedLM

    from distil_jax.models import MaskedLM

    trained = export(tiny_run, tmp_path / "model").source
    loaded: Any = DistilBertForMaskedLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    model, loading = loaded
    assert not any(loading.values()), loading
    ids = AutoTokenizer.from_pretrained(tmp_path / "model")("the cat sat on a [MASK].", return_tensors="np")[
        "input_ids"
    ]
    assert trained.tokenizer.mask_id in ids
    with torch.no_grad():
        expected = model(torch.tensor(ids)).logits.numpy()
    actual = MaskedLM(trained.encoder).apply({"params": trained.params}, ids.astype(np.int32))
    np.testing.assert_allclose(np.asarray(actual), expected, atol=1e-5)


def test_a_second_export_replaces_the_first_only_when_told_to(tiny_run: Path, tmp_path: Path) -> None:
    export(tiny_run, tmp_path / "model", step=1)
    with pytest.raises(UserError, match="not empty"):
        export(tiny_run, tmp_path / "model", step=2)
    assert same(read_pretrained(tmp_path / "model")[1], read_run(tiny_run, 1).params)
    export(tiny_run, tmp_path / "model", step=2, overwrite=True)
    assert same(read_pretrained(tmp_path / "model")[1], read_run(tiny_run, 2).params)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_is_no_run_is_refused(tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the folder of a run"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="no checkpoint of step 3; there are 1, 2"):
        read_run(tiny_run, 3)
    (tmp_path / "config.toml").write_text((tiny_run / "config.toml").read_text())
    with pytest.raises(UserError, match="no checkpoints here"):
        read_run(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(UserError, match="dropped, since another run of the study is better"):
        read_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no checkpoint yet"):
        read_run(tmp_path)


def test_reading_a_run_leaves_it_alone(tiny_run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")}
    read_run(tiny_run)
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")} == before
