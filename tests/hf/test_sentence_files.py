"""The files of sentence-transformers: what is written is read, in their old and new form; others are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distil_jax.errors import UserError
from distil_jax.hf import check_files, read_pooling, read_pretrained, save_pretrained
from distil_jax.hf.sentence_files import write_pooling
from distil_jax.models import Pooling

FULL = Pooling("max", True, 24, True, (("query", "ask: "), ("document", "")), "query")
# As sentence-transformers 6 writes them.
NEW = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.sentence_transformer.Pooling"},
    ],
    "1_Pooling/config.json": {"embedding_dimension": 16, "pooling_mode": "cls", "include_prompt": True},
    "sentence_bert_config.json": {"transformer_task": "feature-extraction"},
}


def write(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("pooling", [Pooling(max_length=32), FULL, Pooling("cls", max_length=8)])
def test_what_is_written_is_read(pooling: Pooling, tmp_path: Path) -> None:
    write_pooling(tmp_path, pooling, 16, 32)
    assert read_pooling(tmp_path) == pooling


def test_a_text_is_never_longer_than_the_encoder(tmp_path: Path) -> None:
    write_pooling(tmp_path, Pooling(max_length=512), 16, 32)
    found = read_pooling(tmp_path)
    assert found and found.max_length == 32


def test_newer_files_are_read(tmp_path: Path) -> None:
    assert read_pooling(write(tmp_path, NEW)) == Pooling("cls")


def test_a_plain_folder_says_nothing(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "content", "fact"),
    [
        ("modules.json", {}, "list"),
        ("modules.json", [{"type": 3}], "module"),
        ("modules.json", [{"type": "x.Transformer", "path": "../up"}], "up"),
        ("modules.json", [{"type": "x.Transformer", "path": ""}, {"type": "x.Dense", "path": "2"}], "Dense"),
        ("modules.json", [{"type": "x.Transformer", "path": "0_T"}, {"type": "x.Pooling", "path": "1"}], "0_T"),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, "cls"),
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, "lasttoken"),
        ("1_Pooling/config.json", {"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        ("1_Pooling/config.json", {"pooling_mode": "cls", "include_prompt": False}, "include_prompt"),
        ("sentence_bert_config.json", {"max_seq_length": "long"}, "max_seq_length"),
        ("config_sentence_transformers.json", {"prompts": {"a": 1}}, "prompts"),
        ("config_sentence_transformers.json", {"prompts": {}, "default_prompt_name": "q"}, "default_prompt_name"),
    ],
)
def test_what_is_not_computed_is_refused(name: str, content: Any, fact: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_pooling(write(tmp_path, {**NEW, name: content}))
    assert fact in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_saved_folder_is_whole(model_folder: Callable[..., str], tmp_path: Path) -> None:
    """Also the files in folders below it have their hashes."""
    config, params, *_ = read_pretrained(model_folder())
    save_pretrained(tmp_path / "model", config, params, pooling=FULL)
    assert read_pooling(tmp_path / "model") == FULL
    flaws = check_files(tmp_path / "model")
    assert "1_Pooling/config.json" in flaws and not any(flaws.values())
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text("{}")
    assert check_files(tmp_path / "model")["1_Pooling/config.json"]
