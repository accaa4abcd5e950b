"""Every file format gives PyTorch's tensors, and damaged or hostile files one clear line."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.serialization
import numpy as np
import pytest
import safetensors.numpy
import torch

from distil_jax.errors import UserError
from distil_jax.hf import from_pretrained, read_pretrained, read_tensors


def _state(model: Any) -> dict[str, np.ndarray]:
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


def _assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        assert found[name].tobytes() == values.tobytes(), name


def _flax_tree(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names and orientation that transformers' Flax classes had, flat with dots."""
    tree = {}
    for name, values in state.items():
        stem, last = name.rsplit(".", 1)
        if last == "weight" and "embeddings." in name and "LayerNorm" not in name:
            last = "embedding"
        elif last == "weight" and values.ndim == 2:
            last, values = "kernel", np.ascontiguousarray(values.T)
        elif last == "weight":
            last = "scale"
        tree[f"{stem}.{last}"] = values
    return tree


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict = {}
    for name, values in flat.items():
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = values
    return tree


@pytest.fixture(params=["BertForMaskedLM", "BertModel", "DistilBertForMaskedLM"])
def model(request: pytest.FixtureRequest, make_model: Callable[..., Any]) -> Any:
    return make_model(request.param)


def _write(model: Any, folder: Path, kind: str) -> None:
    folder.mkdir()
    model.config.save_pretrained(folder)
    state = _state(model)
    half = dict(list(state.items())[::2]), dict(list(state.items())[1::2])
    if kind == "safetensors":
        model.save_pretrained(folder)
    elif kind == "sharded":
        model.save_pretrained(folder, max_shard_size="3KB")
        assert (folder / "model.safetensors.index.json").exists()
    elif kind == "bin":
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    elif kind == "legacy_bin":
        torch.save(model.state_dict(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif kind == "sharded_bin":
        shards = [f"pytorch_model-{i}-of-00002.bin" for i in (1, 2)]
        for shard, part in zip(shards, half, strict=True):
            torch.save({name: torch.from_numpy(values) for name, values in part.items()}, folder / shard)
        index = {name: shard for shard, part in zip(shards, half, strict=True) for name in part}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    elif kind == "msgpack":
        (folder / "flax_model.msgpack").write_bytes(flax.serialization.to_bytes(_nested(_flax_tree(state))))
    elif kind == "sharded_msgpack":
        shards = [f"flax_model-{i}-of-00002.msgpack" for i in (1, 2)]
        parts = [_flax_tree(part) for part in half]
        for shard, part in zip(shards, parts, strict=True):
            (folder / shard).write_bytes(flax.serialization.to_bytes(_nested(part)))
        index = {n.replace(".", "/"): shard for shard, part in zip(shards, parts, strict=True) for n in part}
        (folder / "flax_model.msgpack.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    else:
        separator = {"flax_dots": ".", "flax_slashes": "/"}[kind]
        flat = {name.replace(".", separator): values for name, values in _flax_tree(state).items()}
        safetensors.numpy.save_file(flat, folder / "model.safetensors", metadata={"format": "flax"})


FORMATS = ["safetensors", "sharded", "bin", "legacy_bin", "sharded_bin"]
FLAX_FORMATS = ["msgpack", "sharded_msgpack", "flax_dots", "flax_slashes"]


@pytest.mark.parametrize("kind", FORMATS + FLAX_FORMATS)
def test_every_format(model: Any, tmp_path: Path, kind: str) -> None:
    _write(model, tmp_path / "m", kind)
    found = read_tensors(tmp_path / "m")
    # A .bin repeats the tied tensors under their second names.
    tied = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "vocab_projector.weight"}
    _assert_same({name: values for name, values in found.items() if name not in tied}, _state(model))
    _, params, *_ = read_pretrained(tmp_path / "m")
    assert ("mlm_head" in params) == ("MaskedLM" in type(model).__name__)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_other_floats_become_float32(make_model: Callable[..., Any], tmp_path: Path, dtype: str, kind: str) -> None:
    model = make_model("DistilBertModel").to(getattr(torch, dtype))
    _write_any = {"safetensors": model.save_pretrained, "bin": lambda f: _save_bin(model, f)}[kind]
    _write_any(tmp_path / "m")
    expected = {name: parameter.detach().float().numpy() for name, parameter in model.named_parameters()}
    _assert_same(read_tensors(tmp_path / "m"), expected)
    _, params = from_pretrained(tmp_path / "m")
    assert params["layer_0"]["query"]["kernel"].dtype == np.float32


def _save_bin(model: Any, folder: Path) -> None:
    folder.mkdir()
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


def test_bfloat16_from_flax(make_model: Callable[..., Any], tmp_path: Path) -> None:
    import jax.numpy as jnp

    model = make_model("DistilBertModel")
    tree = {name: jnp.asarray(values, jnp.bfloat16) for name, values in _flax_tree(_state(model)).items()}
    model.config.save_pretrained(tmp_path)
    (tmp_path / "flax_model.msgpack").write_bytes(flax.serialization.to_bytes(_nested(tree)))
    expected = {name: p.detach().bfloat16().float().numpy() for name, p in model.named_parameters()}
    _assert_same(read_tensors(tmp_path), expected)


def test_safetensors_come_first(make_model: Callable[..., Any], tmp_path: Path) -> None:
    _save_bin(make_model("DistilBertModel", seed=1), tmp_path / "m")
    wanted = make_model("DistilBertModel", seed=2)
    wanted.save_pretrained(tmp_path / "m")
    _assert_same(read_tensors(tmp_path / "m"), _state(wanted))


def test_the_file_is_mapped_not_copied(make_folder: Callable[..., Path]) -> None:
    """Two reads of a float32 file share no memory of their own: both are read-only views."""
    values = read_tensors(make_folder("DistilBertModel"))["embeddings.word_embeddings.weight"]
    assert not values.flags.writeable
    assert not values.flags.owndata


@pytest.mark.parametrize("shard", ["../evil.safetensors", "/etc/evil.safetensors", "a/b.safetensors", "x.bin", 3, ""])
def test_shards_stay_in_the_folder(make_model: Callable[..., Any], tmp_path: Path, shard: Any) -> None:
    _write(make_model("DistilBertModel"), tmp_path / "m", "sharded")
    index = tmp_path / "m" / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    raw["weight_map"]["embeddings.LayerNorm.bias"] = shard
    index.write_text(json.dumps(raw))
    (tmp_path / "evil.safetensors").write_bytes(next((tmp_path / "m").glob("*.safetensors")).read_bytes())
    with pytest.raises(UserError, match="in this folder"):
        read_tensors(tmp_path / "m")


def test_missing_shard_and_missing_tensor(make_model: Callable[..., Any], tmp_path: Path) -> None:
    _write(make_model("DistilBertModel"), tmp_path / "m", "sharded")
    index = tmp_path / "m" / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    shard = raw["weight_map"]["embeddings.LayerNorm.bias"]
    raw["weight_map"]["not.there"] = shard
    index.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"not\.there"):
        read_tensors(tmp_path / "m")
    (tmp_path / "m" / shard).unlink()
    with pytest.raises(UserError, match=shard):
        read_tensors(tmp_path / "m")


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": 3}', "nonsense"])
def test_bad_index(tmp_path: Path, content: Any) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"index\.json"):
        read_tensors(tmp_path)


def test_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.safetensors, .*pytorch_model\.bin, .*flax_model\.msgpack"):
        read_tensors(tmp_path)


def _safetensors(header: object, data: bytes = b"\0" * 16, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HOSTILE = {
    "empty": b"",
    "header beyond the file": _safetensors({"a": _entry([4], 0, 16)}, length=10**6),
    "header of 2^62 bytes": _safetensors({"a": _entry([4], 0, 16)}, length=1 << 62),
    "not json": _safetensors(b"{nonsense"),
    "data beyond the file": _safetensors({"a": _entry([1 << 40], 0, 1 << 42)}),
    "negative offset": _safetensors({"a": _entry([4], -16, 0)}),
    "overlap": _safetensors({"a": _entry([4], 0, 16), "b": _entry([2], 0, 8)}),
    "gap": _safetensors({"a": _entry([2], 8, 16)}),
    "size and shape disagree": _safetensors({"a": _entry([3], 0, 16)}),
    "shape overflows": _safetensors({"a": _entry([1 << 33, 1 << 33], 0, 16)}),
    "cut short": _safetensors({"a": _entry([4], 0, 16)}, data=b"\0" * 15),
    "trailing bytes": _safetensors({"a": _entry([4], 0, 16)}, data=b"\0" * 17),
    "unknown type": _safetensors({"a": _entry([4], 0, 16, "X99")}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_safetensors(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(HOSTILE[name])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged") as caught:
        read_tensors(tmp_path)
    assert "\n" not in str(caught.value)


def test_types_that_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(_safetensors({"a": _entry([16], 0, 16, "F8_E4M3")}))
    with pytest.raises(UserError, match="F8_E4M3"):
        read_tensors(tmp_path)


def test_other_frameworks_are_refused(tmp_path: Path) -> None:
    values = {"a": np.zeros(3, np.float32)}
    safetensors.numpy.save_file(values, tmp_path / "model.safetensors", metadata={"format": "tf"})
    with pytest.raises(UserError, match="'tf'"):
        read_tensors(tmp_path)
