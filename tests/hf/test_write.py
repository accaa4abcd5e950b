"""What is written is what transformers writes and loads, whole or not at all."""

# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch
import transformers

from distil_jax.errors import UserError
from distil_jax.hf import from_pretrained, load_tokenizer, read_pretrained, save_pretrained

CLASSES = [
    "BertForMaskedLM",
    "BertModel",
    "DistilBertForMaskedLM",
    "DistilBertModel",
    "RobertaForMaskedLM",
    "RobertaModel",
    "XLMRobertaForMaskedLM",
    "MPNetForMaskedLM",
    "MPNetModel",
    "ElectraForMaskedLM",
    "ElectraModel",
]


@pytest.mark.parametrize("architecture", CLASSES)
def test_transformers_loads_it_without_missing_or_unexpected_keys(
    make_folder: Callable[..., Path], make_model: Callable[..., Any], tmp_path: Path, architecture: str
) -> None:
    config, params, *_ = read_pretrained(make_folder(architecture))
    save_pretrained(tmp_path / "actual", config, params)
    model_class = getattr(transformers, architecture)
    loaded, report = model_class.from_pretrained(tmp_path / "actual", output_loading_info=True)
    assert all(not found for found in report.values()), report
    original = make_model(architecture)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(loaded.eval()(ids)[0], original(ids)[0])
    auto = transformers.AutoConfig.from_pretrained(tmp_path / "actual")
    assert auto.architectures == [architecture]


@pytest.mark.parametrize("architecture", CLASSES)
def test_the_file_is_the_one_that_transformers_writes(
    make_folder: Callable[..., Path], tmp_path: Path, architecture: str
) -> None:
    expected = make_folder(architecture)
    save_pretrained(tmp_path / "actual", *read_pretrained(expected)[:2])
    files = [folder / "model.safetensors" for folder in (expected, tmp_path / "actual")]
    left, right = (safetensors.numpy.load_file(path) for path in files)
    assert left.keys() == right.keys()
    assert all(left[name].tobytes() == right[name].tobytes() for name in left)
    with safetensors.safe_open(files[1], "numpy") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_tensor_count_of_the_base_model(tmp_path: Path) -> None:
    """105 tensors for six layers with head; the tied vocab_projector.weight is not among them."""
    config = transformers.DistilBertConfig(vocab_size=11, dim=4, n_heads=2, hidden_dim=4, max_position_embeddings=4)
    transformers.DistilBertForMaskedLM(config).save_pretrained(tmp_path / "expected")
    save_pretrained(tmp_path / "actual", *read_pretrained(tmp_path / "expected")[:2])
    names = safetensors.numpy.load_file(tmp_path / "actual" / "model.safetensors").keys()
    assert len(names) == 105
    assert "vocab_projector.bias" in names
    assert "vocab_projector.weight" not in names


def test_the_real_minilm(minilm: Path, tmp_path: Path) -> None:
    config, params, *_ = read_pretrained(minilm)
    save_pretrained(tmp_path / "actual", config, params, tokenizer=load_tokenizer(minilm), readme="# card\n")
    left = safetensors.numpy.load_file(minilm / "model.safetensors")
    right = safetensors.numpy.load_file(tmp_path / "actual" / "model.safetensors")
    left.pop("embeddings.position_ids", None)
    assert left.keys() == right.keys()
    assert all(left[name].tobytes() == right[name].tobytes() for name in left)
    _, report = transformers.AutoModel.from_pretrained(tmp_path / "actual", output_loading_info=True)
    assert all(not found for found in report.values()), report
    assert (tmp_path / "actual" / "README.md").read_text() == "# card\n"
    text = "Distilling knowledge, économiquement"
    expected = transformers.AutoTokenizer.from_pretrained(tmp_path / "actual")(text).input_ids
    assert expected == transformers.AutoTokenizer.from_pretrained(minilm)(text).input_ids


def test_a_pooler_next_to_a_head_is_left_out(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_folder("BertForPreTraining")
    config, params, *_ = read_pretrained(folder, "none")
    _, with_head, *_ = read_pretrained(folder, "mlm")
    both = {"encoder": params["encoder"], "mlm_head": with_head["mlm_head"]}
    assert config.pooler
    save_pretrained(tmp_path / "actual", config, both)
    model_class: Any = transformers.BertForMaskedLM
    _, report = model_class.from_pretrained(tmp_path / "actual", output_loading_info=True)
    assert all(not found for found in report.values()), report


@pytest.mark.parametrize("family", ["Bert", "DistilBert"])
def test_an_encoder_with_neither_head_nor_pooler(family: str, make_folder: Callable[..., Path], tmp_path: Path) -> None:
    module, params = from_pretrained(make_folder(f"{family}ForMaskedLM"), head="none")
    save_pretrained(tmp_path / "actual", module.config, params)
    options = {"add_pooling_layer": False} if family == "Bert" else {}
    model_class: Any = getattr(transformers, f"{family}Model")
    _, report = model_class.from_pretrained(tmp_path / "actual", output_loading_info=True, **options)
    assert all(not found for found in report.values()), report


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_an_exported_tokenizer_reads_texts_as_transformers_does(task_folder: Callable[..., Path], family: str) -> None:
    folder = task_folder("classes", family)
    tokenizer, reference = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for texts in (("the cat [SEP] sat",), ("[CLS] a [MASK] dog [PAD]",), ("the [SEP] cat", "a [UNK] dog")):
        ids = reference(*texts).input_ids
        assert tokenizer.backend.encode(*texts).ids == ids
    assert reference(["the", "a cat"], padding=True).input_ids[0][-1] == tokenizer.pad_id
    assert tokenizer.mask_id in tokenizer.backend.encode("the [MASK] sat").ids


def test_an_encoders_own_tree_and_jax_arrays(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    import jax
    import jax.numpy as jnp

    folder = make_folder("DistilBertModel")
    module, params = from_pretrained(folder)
    on_device = jax.tree.map(jnp.asarray, params)
    save_pretrained(tmp_path / "actual", module.config, on_device)
    left, right = (safetensors.numpy.load_file(f / "model.safetensors") for f in (folder, tmp_path / "actual"))
    assert left.keys() == right.keys()
    assert all(left[name].tobytes() == right[name].tobytes() for name in left)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_used_folders_are_not_touched_unless_told(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    config, params, *_ = read_pretrained(make_folder("DistilBertModel"))
    target = tmp_path / "models" / "actual"
    save_pretrained(target, config, params, readme="first")
    before = _contents(target)
    with pytest.raises(UserError, match="not empty"):
        save_pretrained(target, config, params)
    assert _contents(target) == before
    save_pretrained(target, config, params, overwrite=True)
    assert set(_contents(target)) == {"config.json", "model.safetensors", "SHA256SUMS"}
    assert list(target.parent.iterdir()) == [target]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="no model folder"):
        save_pretrained(tmp_path / "home", config, params, overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        save_pretrained(tmp_path / "home" / "thesis.txt", config, params, overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "years of work"


def test_overwriting_the_folder_that_the_parameters_are_mapped_from(make_folder: Callable[..., Path]) -> None:
    folder = make_folder("DistilBertModel")
    before = safetensors.numpy.load_file(folder / "model.safetensors")
    config, params, *_ = read_pretrained(folder)
    save_pretrained(folder, config, params, overwrite=True)
    after = safetensors.numpy.load_file(folder / "model.safetensors")
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)
    assert params["encoder"]["embeddings"]["norm"]["scale"].shape == (12,)


def test_a_failure_leaves_nothing_behind(
    make_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, params, *_ = read_pretrained(make_folder("DistilBertModel"))
    target = tmp_path / "models" / "actual"
    save_pretrained(target, config, params, readme="first")
    before = _contents(target)

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(UserError, match="No space left"):
        save_pretrained(target, config, params, overwrite=True)
    monkeypatch.undo()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        save_pretrained(tmp_path / "models" / "other", config, params)
    assert _contents(target) == before
    assert list(target.parent.iterdir()) == [target]


def test_the_folder_is_readable_as_the_umask_says(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    previous = os.umask(0o022)
    try:
        save_pretrained(tmp_path / "actual", *read_pretrained(make_folder("DistilBertModel"))[:2])
    finally:
        os.umask(previous)
    assert oct((tmp_path / "actual").stat().st_mode & 0o777) == "0o755"
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "actual").iterdir()} == {"0o644"}


def test_what_does_not_fit_is_refused_before_writing(
    make_folder: Callable[..., Path], tmp_path: Path, minilm: Path
) -> None:
    config, params, *_ = read_pretrained(make_folder("DistilBertModel"))
    with pytest.raises(UserError, match="30522"):
        save_pretrained(tmp_path / "actual", config, params, tokenizer=load_tokenizer(minilm))
    with pytest.raises(UserError, match="wrong shape"):
        save_pretrained(tmp_path / "actual", dataclasses.replace(config, vocab_size=51), params)
    assert not (tmp_path / "actual").exists()


def test_config_json_is_plain(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    config, params, *_ = read_pretrained(make_folder("BertForMaskedLM"))
    save_pretrained(tmp_path / "actual", config, params)
    raw = json.loads((tmp_path / "actual" / "config.json").read_text())
    assert (raw["model_type"], raw["architectures"], raw["dtype"]) == ("bert", ["BertForMaskedLM"], "float32")
    assert read_pretrained(tmp_path / "actual")[0] == config
    assert np.all([np.isfinite(value) for value in raw.values() if isinstance(value, float)])
