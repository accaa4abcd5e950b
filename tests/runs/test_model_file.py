"""model.json: written once, checked by hashes, written again where it or the tokenizer is damaged."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from distil_jax.errors import UserError
from distil_jax.hf import Tokenizer, load_tokenizer
from distil_jax.runs.model_file import (
    MODEL_FILE,
    TOKENIZER_FOLDER,
    keep_model_file,
    model_sha256,
    read_model_file,
    tokenizer_flaws,
)

FACTS = {"model": {"family": "bert", "num_layers": 2}, "description": {"teacher": "ß"}}


@pytest.fixture
def tokenizer(tiny_inputs: Path) -> Tokenizer:
    return load_tokenizer(tiny_inputs / "tokenizer")


@pytest.fixture
def kept(tokenizer: Tokenizer, tmp_path: Path) -> dict[str, Any]:
    """What model.json in tmp_path says."""
    return keep_model_file(tmp_path, FACTS, tokenizer, "bert")


def test_it_says_what_it_was_given_and_the_hashes_of_the_tokenizer(kept: dict[str, Any], tmp_path: Path) -> None:
    assert read_model_file(tmp_path) == kept
    assert {name: kept[name] for name in FACTS} == FACTS
    files = {path.name: path.read_bytes() for path in (tmp_path / TOKENIZER_FOLDER).iterdir()}
    assert kept["tokenizer"] == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    contents = {name: value for name, value in kept.items() if name != "sha256"}
    assert model_sha256(kept) == hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def test_a_run_that_continues_keeps_what_its_first_start_wrote(
    kept: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Its checkpoints hold the hash, and a newer program may say more of the same model."""
    assert keep_model_file(tmp_path, {**FACTS, "more": 1}, tokenizer, "bert") == kept


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"sha256": "x"}', b"null", b"\xff"])
def test_a_damaged_one_is_refused_and_written_again(
    damage: bytes, kept: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / MODEL_FILE).write_bytes(damage)
    with pytest.raises(UserError, match=f"{tmp_path / MODEL_FILE}: damaged"):
        read_model_file(tmp_path)
    assert keep_model_file(tmp_path, FACTS, tokenizer, "bert") == kept == read_model_file(tmp_path)


def test_a_changed_value_is_damage(kept: dict[str, Any], tmp_path: Path) -> None:
    text = (tmp_path / MODEL_FILE).read_text()
    (tmp_path / MODEL_FILE).write_text(text.replace('"num_layers": 2', '"num_layers": 3'))
    with pytest.raises(UserError, match="SHA-256"):
        read_model_file(tmp_path)


def test_a_missing_one_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path / MODEL_FILE}: missing.*resume {tmp_path}.*migrate"):
        read_model_file(tmp_path)


def test_the_tokenizer_is_written_again_where_it_is_damaged(
    kept: dict[str, Any], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / TOKENIZER_FOLDER / "tokenizer.json"
    path.write_text(path.read_text().replace("cat", "cut"))
    (tmp_path / TOKENIZER_FOLDER / "vocab.txt").unlink()
    flawed = {name for name, flaw in tokenizer_flaws(tmp_path, kept).items() if flaw}
    assert flawed == {"tokenizer.json", "vocab.txt"}
    assert keep_model_file(tmp_path, FACTS, tokenizer, "bert") == kept
    assert not any(tokenizer_flaws(tmp_path, kept).values())
