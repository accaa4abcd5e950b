"""The Python that README and guides show does what it says, on tiny models."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distil_jax
from distil_jax.models import Encoder, MaskedLM, TaskModel

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_the_example_asks_for_the_masked_word(
    page: str, tiny_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").symlink_to(tiny_world / "teacher")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec((ROOT / page).read_text(encoding="utf-8").split("```python\n")[1].split("```")[0], names)
    ids, module = np.asarray(names["inputs"].ids), names["module"]
    assert np.count_nonzero(ids == names["tokenizer"].mask_id) == 1
    expected = AutoTokenizer.from_pretrained("models/mine")("The capital of France is [MASK].").input_ids
    assert ids.tolist() == [expected]
    assert names["logits"].shape == (*ids.shape, module.config.vocab_size)
    if "hidden" in names:
        assert names["hidden"].shape == (*ids.shape, module.config.hidden_size)
    assert distil_jax.from_pretrained("models/copy")[0].config == module.config


@pytest.mark.parametrize("head", ["mlm", "none", "sequence"])
def test_every_kind_of_model_is_saved_as_in_the_table(
    task_folder: Callable[..., Path], model_folder: Callable[..., str], tmp_path: Path, head: Any
) -> None:
    row = next(
        line
        for line in (ROOT / "docs/from_flax.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `model.save_pretrained(")
    )
    _, code, more = re.findall("`([^`]+)`", row)
    source = model_folder() if head == "mlm" else task_folder("classes")
    module, p = distil_jax.from_pretrained(source, head=head)
    assert isinstance(module, {"mlm": MaskedLM, "none": Encoder, "sequence": TaskModel}[head])
    names = {"save_pretrained": distil_jax.save_pretrained, "module": module, "p": p, "folder": tmp_path / "copy"}
    names["tokenizer"] = distil_jax.load_tokenizer(source)
    eval(f"{code[:-1]}, {more})" if head == "sequence" else code, names)
    assert distil_jax.from_pretrained(tmp_path / "copy")[0] == module
