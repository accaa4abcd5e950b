"""Tokenizers of folders and files give transformers' ids, before and after saving."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from distil_jax.errors import UserError
from distil_jax.hf import Tokenizer, load_tokenizer, save_tokenizer

TRICKY = [
    "Plain words, punctuated; don't!",
    "Café naïve Ångström ÉCOLE ﬁn",
    "e\u0301 combining \u0130stanbul straße ΣΊΣΥΦΟΣ",
    "中文字符 and 日本語テキスト 한국어",
    "emoji 😀👩‍👩‍👧 🏳️‍🌈 family",
    "control \x00\x01\x07 tab\tnew\nline \u200b zero \ufeff bom \u00ad soft \ufffd",
    "العربية עברית हिन्दी ไทย",
    "unfriendliest" * 9,
    "x" * 101,
    "$1,234.56 #tag @user http://a.b/c?d=e&f",
    "",
    " \u3000\u00a0 ",
]


@pytest.fixture
def vocab(shared: Path) -> Path:
    return shared / "data" / "vocab"


def _assert_same_as_transformers(tokenizer: Tokenizer, folder: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.model_max_length == 512
    for text in TRICKY:
        assert tokenizer.backend.encode(text).ids == theirs(text, truncation=False).input_ids, text
    pair = tokenizer.backend.encode("one two", "three")
    encoded = theirs("one two", "three", return_token_type_ids=True)
    assert (pair.ids, pair.type_ids) == (encoded.input_ids, encoded.token_type_ids)
    ids = [theirs.pad_token_id, theirs.unk_token_id, theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id]
    assert tokenizer.special_ids == tuple(sorted(ids))
    assert tokenizer.mask_id == theirs.mask_token_id


def test_the_real_minilm(minilm: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(minilm)
    _assert_same_as_transformers(tokenizer, minilm)
    assert (tokenizer.vocab_size, tokenizer.lowercase) == (30522, True)
    assert tokenizer.special_ids == (0, 100, 101, 102, 103)
    save_tokenizer(tmp_path, tokenizer)
    _assert_same_as_transformers(tokenizer, tmp_path)
    assert load_tokenizer(tmp_path).sha256 == tokenizer.sha256


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize(("name", "lowercase"), [("uncased", True), ("cased", False)])
def test_saved_from_a_bare_vocabulary(vocab: Path, tmp_path: Path, family: str, name: str, lowercase: bool) -> None:
    tokenizer = load_tokenizer(vocab / f"bert-base-{name}-vocab.txt")
    assert tokenizer.lowercase == lowercase
    save_tokenizer(tmp_path, tokenizer, family=family)
    _assert_same_as_transformers(tokenizer, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert ("token_type_ids" in theirs("a")) == (family == "bert")
    assert {path.name for path in tmp_path.iterdir()} == {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.txt",
    }
    assert (tmp_path / "vocab.txt").read_bytes().rstrip() == (
        vocab / f"bert-base-{name}-vocab.txt"
    ).read_bytes().rstrip()
    again = load_tokenizer(tmp_path)
    assert (again.sha256, again.lowercase) == (tokenizer.sha256, lowercase)
    for text in TRICKY:
        assert again.backend.encode(text).ids == tokenizer.backend.encode(text).ids


def test_vocabulary_and_json_of_one_model_are_the_same(vocab: Path) -> None:
    bare = load_tokenizer(vocab / "bert-base-uncased-vocab.txt")
    full = load_tokenizer(vocab / "bert-base-uncased-tokenizer.json")
    assert bare.sha256 == full.sha256
    for text in TRICKY:
        assert bare.backend.encode(text).ids == full.backend.encode(text).ids


def test_truncation_and_padding_of_the_file_are_off(vocab: Path) -> None:
    """This tokenizer.json cuts and pads to 128 tokens."""
    assert json.loads((vocab / "bert-base-uncased-tokenizer.json").read_text())["truncation"]["max_length"] == 128
    tokenizer = load_tokenizer(vocab / "bert-base-uncased-tokenizer.json")
    assert len(tokenizer.backend.encode("word " * 300).ids) == 302
    assert len(tokenizer.backend.encode("word").ids) == 3


def test_special_tokens_in_text_are_characters(vocab: Path) -> None:
    tokenizer = load_tokenizer(vocab / "bert-base-uncased-vocab.txt")
    ids = tokenizer.backend.encode("a [CLS] b [MASK] [PAD]", add_special_tokens=False).ids
    assert not set(ids) & set(tokenizer.special_ids)


def test_only_vocab_txt_in_a_folder(vocab: Path, tmp_path: Path) -> None:
    shutil.copy(vocab / "bert-base-uncased-vocab.txt", tmp_path / "vocab.txt")
    assert load_tokenizer(tmp_path).lowercase
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = load_tokenizer(tmp_path)
    assert not cased.lowercase
    assert cased.backend.encode("A").ids[1] == cased.unk_id
    assert load_tokenizer(tmp_path, lowercase=True).lowercase


@pytest.mark.parametrize("settings", [{"do_lower_case": False}, {"do_lower_case": True, "strip_accents": False}])
def test_settings_win_over_tokenizer_json_as_in_transformers(
    minilm: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    shutil.copy(minilm / "tokenizer.json", tmp_path)
    raw = {"tokenizer_class": "BertTokenizer", "model_max_length": 512} | settings
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(raw))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.lowercase == settings["do_lower_case"]
    _assert_same_as_transformers(tokenizer, tmp_path)
    assert tokenizer.sha256 != load_tokenizer(minilm).sha256
    save_tokenizer(tmp_path / "saved", tokenizer)
    _assert_same_as_transformers(tokenizer, tmp_path / "saved")


def test_a_pipeline_that_is_not_berts_own(tmp_path: Path) -> None:
    """Saved so that transformers takes it as it stands instead of building its own."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "é", "##b", "-"]
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.lowercase
    assert tokenizer.backend.encode("AB É a-").ids == [2, 5, 7, 6, 1, 3]
    save_tokenizer(tmp_path / "saved", tokenizer)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert theirs("AB É a-").input_ids == [2, 5, 7, 6, 1, 3]
    assert load_tokenizer(tmp_path / "saved").sha256 == tokenizer.sha256


def test_identity_depends_on_vocabulary_and_case(vocab: Path, tmp_path: Path) -> None:
    path = vocab / "bert-base-uncased-vocab.txt"
    one = load_tokenizer(path)
    assert one.sha256 == load_tokenizer(path).sha256
    assert one.sha256 != load_tokenizer(path, lowercase=False).sha256
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[2000], lines[2001] = lines[2001], lines[2000]
    (tmp_path / "vocab.txt").write_text("".join(lines), encoding="utf-8")
    assert one.sha256 != load_tokenizer(tmp_path).sha256


BASIC = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.mark.parametrize(
    ("tokens", "named"),
    [
        ([*BASIC[:4], "a", "b"], r"\[MASK\]"),
        (BASIC, "only 5 tokens"),
        ([*BASIC, "a", "b", "a"], "'a' is on two lines"),
    ],
)
def test_bad_vocabularies(tmp_path: Path, tokens: list[str], named: str) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(tokens))
    with pytest.raises(UserError, match=named):
        load_tokenizer(tmp_path)


def test_gaps_other_models_and_damage(tmp_path: Path, vocab: Path) -> None:
    path = tmp_path / "tokenizer.json"
    raw = json.loads((vocab / "bert-base-uncased-tokenizer.json").read_text())
    raw["model"]["vocab"]["gap"] = 40000
    path.write_text(json.dumps(raw))
    with pytest.raises(UserError, match="without gap"):
        load_tokenizer(tmp_path)
    path.write_text(json.dumps({**raw, "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}))
    with pytest.raises(UserError, match="WordLevel"):
        load_tokenizer(tmp_path)
    path.write_text("{}")
    with pytest.raises(UserError, match=r"not a tokenizer\.json"):
        load_tokenizer(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        load_tokenizer(tmp_path)
