"""Text in, a small model out that PyTorch loads: every command once, on a tiny world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distil_jax.cli import main


def test_text_to_a_student_that_pytorch_loads(
    tiny_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoTokenizer, DistilBertForMaskedLM

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    shared = ("--config", str(tiny_inputs / "config.toml"), "--corpus.folder", str(tmp_path / "corpus"))
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    assert main(["prepare", *shared]) == 0
    assert main(["pretrain", *shared, "--run.output", f"{teacher}_run"]) == 0
    assert main(["export", f"{teacher}_run", "--output", str(teacher)]) == 0
    assert main(["distill", *shared, "--run.output", f"{student}_run", "--teacher.path", str(teacher)]) == 0
    assert main(["export", f"{student}_run", "--output", str(student)]) == 0
    measured = ["--corpus", str(tmp_path / "corpus" / "validation"), "--json", str(tmp_path / "measures.json")]
    assert main(["evaluate", str(teacher), str(student), *measured, "--teacher", str(teacher)]) == 0
    loaded: Any = DistilBertForMaskedLM.from_pretrained(student, output_loading_info=True)
    model, loading = loaded
    assert not any(loading.values()), loading
    ids = AutoTokenizer.from_pretrained(student)("the cat sat on the [MASK].", return_tensors="pt")
    assert torch.isfinite(model(**ids).logits).all()
    assert '"agreement": 1.0' in (tmp_path / "measures.json").read_text()  # of the teacher with itself
