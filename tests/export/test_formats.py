"""Formats of exported models are values: one that is registered is written, one that is not is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distil_jax.errors import UserError
from distil_jax.export import FORMATS, ExportFormat, export, read_run


def test_a_registered_format_is_written(whole_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(trained: Any, output: Path, *, overwrite: bool, name: str) -> None:
        output.write_text(f"{trained.step} {overwrite} {name}")

    monkeypatch.setitem(FORMATS, "steps", ExportFormat("steps", "the number of the step", write))
    trained = export(whole_run.folder, tmp_path / "steps.txt", format="steps", name="mine")
    assert (tmp_path / "steps.txt").read_text() == f"{trained.step} False mine"


def test_an_unknown_format_is_refused_with_those_there_are(whole_run: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"onnnx.*hf"):
        export(whole_run.folder, tmp_path / "out", format="onnnx")
    assert not (tmp_path / "out").exists()


def test_the_hugging_face_folder_is_the_same_to_the_byte(whole_run: Any, tmp_path: Path) -> None:
    export(whole_run.folder, tmp_path / "one", name="mine")
    export(whole_run.folder, tmp_path / "two", step=read_run(whole_run.folder).step, name="mine")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)
