"""Which components of a tokenizer.json are read, and what is left out of its files."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from distil_jax.errors import UserError
from distil_jax.hf.tokenizer_files import checked_files

MODEL = {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "content": 1}}
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def table(*replacements: str) -> str:
    """SentencePiece's table: the size of a trie, the trie, texts."""
    texts = b"".join(text.encode() + b"\0" for text in replacements)
    return base64.b64encode((8).to_bytes(4, "little") + bytes(8) + texts).decode()


def check(folder: Path, raw: dict[str, Any]) -> dict[str, Any]:
    (folder / "tokenizer.json").write_text(json.dumps({"model": MODEL} | raw))
    return json.loads(checked_files(folder)["tokenizer.json"])


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("normalizer", {"type": "BertNormalizer", "lowercase": True}),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}),
        ("normalizer", {"type": "Replace", "pattern": {"String": "``"}, "content": '"'}),
        ("normalizer", {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": table("a", "\ufdfa" * 10)}),
        ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": GPT2}, "behavior": "Isolated", "invert": False}),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, {"type": "Metaspace"}]}),
        ("post_processor", {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]}),
    ],
)
def test_components_of_the_families_are_read(tmp_path: Path, name: str, component: dict[str, Any]) -> None:
    assert check(tmp_path, {name: component})[name] == component


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("normalizer", {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}),
        ("normalizer", {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": "  "}),
        ("normalizer", {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}),
        ("normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": ""}),
        ("normalizer", {"type": "Prepend", "prepend": "x" * 1000}),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": table("a" * 65)}),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "!"}),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 17}),
        ("normalizer", {"type": "Sequence"}),
        ("normalizer", {"type": ["NFC"]}),
        ("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(a|b|ab)*c"}, "behavior": "Isolated"}),
        ("pre_tokenizer", "BertPreTokenizer"),
        ("post_processor", {"type": "Sequence", "processors": [{"type": "Nope"}]}),
    ],
)
def test_components_without_a_bound_are_refused(tmp_path: Path, name: str, component: Any) -> None:
    with pytest.raises(UserError, match=rf"tokenizer\.json: {name}"):
        check(tmp_path, {name: component})


def test_what_is_left_out(tmp_path: Path) -> None:
    token = {"id": 2, "content": "[X]", "special": True, "unknown": 1}
    found = check(tmp_path, {"padding": {"strategy": "BatchLongest"}, "truncation": {}, "added_tokens": [token]})
    assert (found["padding"], found["truncation"]) == (None, None)
    assert found["added_tokens"] == [{"id": 2, "content": "[X]", "special": True}]
    assert found["model"]["vocab"] == MODEL["vocab"]
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": False, "vocab_file": "/etc/passwd", "_x": 1, "init_inputs": [], "vocab": None})
    )
    assert json.loads(checked_files(tmp_path)["tokenizer_config.json"]) == {"do_lower_case": False}


def test_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("a\nb\n")
    assert checked_files(tmp_path / "words.txt") == {"vocab.txt": b"a\nb\n"}
    with pytest.raises(UserError, match="no tokenizer"):
        checked_files(tmp_path)
