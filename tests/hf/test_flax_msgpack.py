"""flax_model.msgpack, against Flax's own writer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flax.serialization
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest

from distil_jax.errors import UserError
from distil_jax.hf.flax_msgpack import read_flax_file, torch_names
from distil_jax.hf.lazy_tensor import StoredTensor


def test_what_flax_writes_is_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {
        "a": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)},
        "b": np.arange(4, dtype=np.float16),
        "c": {"d": {"e": np.arange(100, dtype=np.int32).reshape(5, 20)}},
    }
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 64)  # so that "c" is written in chunks
    (tmp_path / "m").write_bytes(flax.serialization.to_bytes(tree))
    assert b"__msgpack_chunked_array__" in (tmp_path / "m").read_bytes()
    found = read_flax_file(tmp_path / "m")
    assert found.keys() == {"a.kernel", "b", "c.d.e"}
    np.testing.assert_array_equal(found["a.kernel"].read(), tree["a"]["kernel"])
    np.testing.assert_array_equal(found["b"].read(), tree["b"])
    np.testing.assert_array_equal(found["c.d.e"].read(), tree["c"]["d"]["e"])


def test_half_precision(tmp_path: Path) -> None:
    values = jnp.asarray([1.5, -2.0, 3e30], jnp.bfloat16)
    (tmp_path / "m").write_bytes(flax.serialization.to_bytes({"a": {"kernel": values}}))
    np.testing.assert_array_equal(read_flax_file(tmp_path / "m")["a.kernel"].read(), values.astype(np.float32))


def test_torch_names() -> None:
    def tensor(*shape: int) -> StoredTensor:
        return StoredTensor(shape, "float32", np.zeros(shape, np.float32))

    names = {
        "x/y/kernel": tensor(2, 3),
        "x.LayerNorm.scale": tensor(4),
        "w.embedding": tensor(5, 2),
        "x.bias": tensor(3),
    }
    found = {name: stored.shape for name, stored in torch_names(names).items()}
    assert found == {"x.y.weight": (3, 2), "x.LayerNorm.weight": (4,), "w.weight": (5, 2), "x.bias": (3,)}


def _pack(value: Any) -> bytes:
    packed = msgpack.packb(value)
    assert packed is not None
    return packed


def _array(shape: Any, dtype: str, data: bytes, code: int = 1) -> bytes:
    return _pack({"a": msgpack.ExtType(code, _pack((shape, dtype, data)))})


def _chunks(parts: dict[str, Any]) -> dict[str, Any]:
    return {"__msgpack_chunked_array__": True, "shape": {"0": 1}, "chunks": parts}


BAD = {
    "empty": b"",
    "noise": b"\xc1\xff\x00garbage",
    "a list": msgpack.packb([1]),
    "a number inside": msgpack.packb({"a": 1}),
    "numbers as names": msgpack.packb({1: {}}),
    "too few bytes": _array((4,), "float32", bytes(15)),
    "too many bytes": _array((4,), "float32", bytes(17)),
    "huge": _array((1 << 40, 1 << 20), "float32", bytes(4)),
    "negative": _array((-1, -4), "float32", bytes(16)),
    "object type": _array((1,), "object", bytes(8)),
    "unknown type": _array((1,), "|S4", bytes(4)),
    "complex": _array((1,), "float32", bytes(4), code=2),
    "shape is text": _array("ab", "float32", bytes(4)),
    "cut short": flax.serialization.to_bytes({"a": np.zeros(10)})[:-3],
    "missing chunks": msgpack.packb({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 3}, "chunks": {}}}),
    "chunks in chunks": msgpack.packb(
        {"a": _chunks({"0": _chunks({"0": msgpack.ExtType(1, _pack(((1,), "float32", bytes(4))))})})}
    ),
    "chunks do not fit": msgpack.packb({"a": {"__msgpack_chunked_array__": True, "shape": {"0": 3}}}),
    "deep": b"\x81\xa1a" * 400 + b"\xc0",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "flax_model.msgpack").write_bytes(BAD[name])
    with pytest.raises(UserError, match=r"flax_model\.msgpack: not a Flax model") as caught:
        read_flax_file(tmp_path / "flax_model.msgpack")
    assert "\n" not in str(caught.value)
