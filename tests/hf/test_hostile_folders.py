"""Model folders from strangers: code in them, sizes, tokenizers, names. Nothing runs, and a refusal is cheap."""

from __future__ import annotations

import base64
import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from distil_jax.errors import UserError
from distil_jax.hf import load_tokenizer, read_encoder_config

pytestmark = pytest.mark.fault("hostile model files, other")
Attack = Callable[..., dict[str, Any]]
Place = Callable[[str, bytes], Path]
CONFIG = {"model_type": "distilbert", "vocab_size": 9, "dim": 4, "n_layers": 1, "n_heads": 2, "hidden_dim": 6}
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "##a"]
TENSOR = safetensors.numpy.save({"embeddings.word_embeddings.weight": np.ones(4, np.float32)})


def test_code_in_the_folder_is_never_run(tmp_path: Path, attack: Attack) -> None:
    """A folder that asks for remote code in all ways that transformers knows, with modules that would leave a trace."""
    flag = tmp_path / "flag"
    folder = tmp_path / "m"
    folder.mkdir()
    evil = f"open({str(flag)!r}, 'w')\nclass Evil: pass\n"
    for name in ("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "__init__.py", "conftest.py"):
        (folder / name).write_text(evil)
    remote = {
        "AutoConfig": "configuration_evil.Evil",
        "AutoModel": "modeling_evil.Evil",
        "AutoTokenizer": ["x.Evil"] * 2,
    }
    asks = {"auto_map": remote, "trust_remote_code": True, "custom_pipelines": {"x": {"impl": "modeling_evil.Evil"}}}
    (folder / "config.json").write_text(json.dumps(CONFIG | asks))
    (folder / "tokenizer_config.json").write_text(json.dumps(asks | {"tokenizer_class": "Evil"}))
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    (folder / "model.safetensors").write_bytes(TENSOR)
    outcomes = {"config": "read", "tokenizer": "refused", "tensors": "read", "params": "refused"}
    for kind, outcome in outcomes.items():
        assert attack(kind, folder, refused=False)["outcome"] == outcome
    assert not flag.exists()
    assert not [name for name in os.listdir(folder) if name.startswith("__pycache__")]


HUGE = {"vocab_size": 1 << 22, "dim": 1 << 16, "n_layers": 1 << 10, "n_heads": 1 << 10, "hidden_dim": 1 << 18}


@pytest.mark.parametrize("name", [*HUGE, "all"])
@pytest.mark.parametrize("size", ["largest", "beyond"])
def test_huge_dimensions_are_not_allocated(attack: Attack, place: Place, name: str, size: str) -> None:
    changes = HUGE if name == "all" else {name: HUGE[name]}
    changes = changes if size == "largest" else dict.fromkeys(changes, 10**15)
    folder = place("config.json", json.dumps(CONFIG | {"dim": 1 << 10} | changes).encode())
    (folder / "model.safetensors").write_bytes(TENSOR)
    attack("params", folder)


TOKENIZERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "a slow pattern": lambda raw: raw.update(
        normalizer={"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"}
    ),
    "text that grows": lambda raw: raw.update(
        normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100_000}
    ),
    "a pattern to split by": lambda raw: raw.update(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    ),
    "a table that panics": lambda raw: raw.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "a table whose replacements grow": lambda raw: raw.update(
        normalizer={"type": "Precompiled", "precompiled_charsmap": base64.b64encode(bytes(8) + b"x" * 9999).decode()}
    ),
    "a template that panics": lambda raw: raw.update(
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "nope", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    ),
    "other ids every time": lambda raw: raw.update(
        model={"type": "BPE", "vocab": raw["model"]["vocab"], "merges": [], "dropout": 0.5}
    ),
    "deep sequences": lambda raw: raw.update(
        normalizer=functools.reduce(lambda x, _: {"type": "Sequence", "normalizers": [x]}, range(100), {})
    ),
    "endless words": lambda raw: raw["model"].update(max_input_chars_per_word=1 << 40),
    "another model": lambda raw: raw["model"].update(type="Unigram"),
    "ids beyond all": lambda raw: raw["model"]["vocab"].update(z=1 << 31),
    "negative ids": lambda raw: raw["model"]["vocab"].update(z=-1),
    "an added token of a megabyte": lambda raw: raw["added_tokens"].append({"id": 9, "content": "x" * 1_000_000}),
    "an added token without id": lambda raw: raw["added_tokens"].append({"content": "x"}),
    "an unknown token that is none": lambda raw: raw["model"].update(unk_token="nope"),
    "a hundred thousand objects": lambda raw: raw.update(added_tokens=[{}] * 100_000),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_hostile_tokenizers(attack: Attack, place: Place, good_files: Mapping[str, bytes], name: str) -> None:
    raw = json.loads(good_files["json/tokenizer.json"])
    TOKENIZERS[name](raw)
    attack("tokenizer", place("tokenizer.json", json.dumps(raw).encode()))


def test_padding_of_the_file_is_left_out(attack: Attack, place: Place, good_files: Mapping[str, bytes]) -> None:
    raw = json.loads(good_files["json/tokenizer.json"])
    raw["padding"] = {"strategy": {"Fixed": 1 << 40}, "direction": "Right", "pad_id": 0, "pad_token": "[PAD]"}
    folder = place("tokenizer.json", json.dumps(raw).encode())
    attack("tokenizer", folder, refused=False)
    assert load_tokenizer(folder).backend.encode("a b").ids == [2, 5, 6, 3]


SETTINGS: dict[str, dict[str, Any]] = {
    "a path": {"vocab": "/etc/passwd"},
    "arguments": {"init_inputs": ["/etc/passwd"]},
    "another file": {"fast_tokenizer_files": ["../tokenizer.4.0.0.json"]},
    "a file of weights": {"gguf_file": "/etc/passwd"},
    "an object": {"tokenizer_object": {"a": 1}},
    "a class that is no tokenizer": {"tokenizer_class": "Trainer"},
    "a class of Python code": {"tokenizer_class": "BertJapaneseTokenizer"},
    "code": {"auto_map": {"AutoTokenizer": ["x.Evil", "x.Evil"]}},
    "a hundred thousand special tokens": {"extra_special_tokens": [str(number) for number in range(100_000)]},
    "a token that is a number": {"cls_token": 5},
    "no class": {"tokenizer_class": {"a": 1}},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_hostile_settings(attack: Attack, place: Place, name: str) -> None:
    place("vocab.txt", "\n".join(VOCABULARY).encode())
    attack("tokenizer", place("tokenizer_config.json", json.dumps(SETTINGS[name]).encode()))


def test_paths_in_settings_are_not_followed(attack: Attack, place: Place) -> None:
    place("vocab.txt", "\n".join(VOCABULARY).encode())
    names = ("vocab_file", "tokenizer_file", "merges_file", "name_or_path", "special_tokens_map_file", "_json_padding")
    folder = place("tokenizer_config.json", json.dumps(dict.fromkeys(names, "/etc/passwd")).encode())
    assert attack("tokenizer", folder, refused=False)["outcome"] == "read"
    assert load_tokenizer(folder).vocab_size == len(VOCABULARY)


VOCABULARIES = {
    "empty": b"",
    "a token of a megabyte": b"x" * 1_000_000,
    "two million tokens": b"\n".join(b"%d" % i for i in range(2_000_000)),
    "not UTF-8": b"[PAD]\n\xff\xfe\n",
    "one token": b"[PAD]",
    "only the same token": b"[PAD]\n" * 500_000,
}


@pytest.mark.parametrize("name", VOCABULARIES)
def test_hostile_vocabularies(attack: Attack, place: Place, name: str) -> None:
    attack("tokenizer", place("vocab.txt", VOCABULARIES[name]))


@pytest.mark.parametrize(
    "name", ["a\0b", "a\nb", "x" * 5000, "y" * 300, "~nobody-of-this-name/x", "../nothing", "", "a/b/c"]
)
def test_names_of_folders(name: str) -> None:
    for read in (read_encoder_config, load_tokenizer):
        with pytest.raises(UserError) as caught:
            read(name)
        assert str(caught.value).isprintable()
