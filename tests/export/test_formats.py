"""Formats of exported models are values: one that is registered is written, one that is not is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from distil_jax.errors import UserError
from distil_jax.export import FORMATS, ExportFormat, export, read_run


def test_a_registered_format_is_written(whole_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(source: Any, path: Path, options: Any) -> None:
        path.write_text(f"{source.step} {options.dtype}")

    monkeypatch.setitem(FORMATS, "steps", ExportFormat("steps", "the step", "extra/s.txt", write, None, runtime=""))
    exported = export(whole_run.folder, tmp_path / "model", formats=["steps"], name="mine")
    assert (tmp_path / "model" / "extra" / "s.txt").read_text() == f"{exported.source.step} float32"
    assert not (tmp_path / "model" / "model.safetensors").exists()
    assert "not run here" in exported.table


def test_an_unknown_format_is_refused_with_those_there_are(whole_run: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"onnnx.*hf"):
        export(whole_run.folder, tmp_path / "out", formats=["hf", "onnnx"])
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "onnx", dataclasses.replace(FORMATS["onnx"], modules=("no_such_module",)))
    with pytest.raises(UserError, match=r'no_such_module: pip install "distil_jax\[onnx\]"'):
        export(tmp_path, tmp_path / "out", formats=["onnx"])
    assert not (tmp_path / "out").exists()


def test_the_hugging_face_folder_is_the_same_to_the_byte(whole_run: Any, tmp_path: Path) -> None:
    export(whole_run.folder, tmp_path / "one", name="mine")
    export(whole_run.folder, tmp_path / "two", step=read_run(whole_run.folder).step, name="mine")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)
