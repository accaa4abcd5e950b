"""Tensor files from strangers, safetensors, MessagePack and shards: refused cheaply, and nothing else is touched."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.fault("hostile model files, other")
Attack = Callable[..., dict[str, Any]]
Place = Callable[[str, bytes], Path]
Fuzz = Callable[[Mapping[str, bytes], int], None]
Read = Callable[[Path], None]


def st_file(header: object, data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int = 0, end: int = 16, shape: tuple[int, ...] = (4,)) -> dict[str, Any]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}


def many_tensors(count: int) -> bytes:
    form = '"t%d":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    entries = ",".join(form % (i, 4 * i, 4 * i + 4) for i in range(count))
    return st_file(f"{{{entries}}}".encode(), bytes(4 * count))


SAFETENSORS_BOMBS: dict[str, Callable[[], bytes]] = {
    "a header of 2^63 bytes": lambda: st_file({"a": entry()}, length=1 << 63),
    "a header of 90 MB, there": lambda: st_file(b"{" + b" " * 90_000_000 + b"}"),
    "a header of 4 MB of lists": lambda: st_file(b'{"a":' + b"[" + b"[]," * 1_300_000 + b"[]]}"),
    "deep lists": lambda: st_file(b'{"a":' + b"[" * 1_000_000),
    "400,000 tensors": lambda: many_tensors(400_000),
    "20,000 tensors": lambda: many_tensors(20_000),
    "overlap": lambda: st_file({"a": entry(), "b": entry(0, 8, (2,))}),
    "offsets beyond the file": lambda: st_file({"a": entry(0, 1 << 40, (1 << 38,))}),
    "offsets backwards": lambda: st_file({"a": entry(16, 0)}),
    "a shape that overflows": lambda: st_file({"a": entry(0, 16, (1 << 62, 1 << 62, 4))}),
    "a shape of a million ones": lambda: st_file({"a": entry(0, 4, (1,) * 1_000_000)}, bytes(4)),
    "the same name twice": lambda: st_file(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2)),
    "a name with ../": lambda: st_file({"../../etc/passwd": entry()}),
    "a name from the root": lambda: st_file({"/etc/passwd": entry()}),
    "a name with a backslash": lambda: st_file({"..\\x": entry()}),
    "a name of a megabyte": lambda: st_file({"x" * 1_000_000: entry()}),
    "a name that breaks the line": lambda: st_file({"a\n\x1b[2Jb": entry()}),
    "an empty name": lambda: st_file({"": entry()}),
    "a framework that breaks the line": lambda: st_file({"__metadata__": {"format": "a\nb" * 9999}, "a": entry()}),
}


@pytest.mark.parametrize("name", SAFETENSORS_BOMBS)
def test_safetensors_bombs(attack: Attack, place: Place, name: str) -> None:
    attack("tensors", place("model.safetensors", SAFETENSORS_BOMBS[name]()))


def packed(value: Any) -> bytes:
    data = msgpack.packb(value)
    assert data is not None
    return data


def ext(shape: Any, dtype: str, data: bytes) -> msgpack.ExtType:
    return msgpack.ExtType(1, packed((shape, dtype, data)))


MSGPACK_BOMBS: dict[str, Callable[[], bytes]] = {
    "a list of four billion": lambda: b"\x81\xa1a\xdd\xff\xff\xff\xff" + b"\xc0" * 30_000_000,
    "a map of four billion": lambda: b"\xdf\xff\xff\xff\xff" + b"\xa1a\xc0" * 1000,
    "two million empty maps": lambda: (
        b"\xdf\x00\x20\x00\x00" + b"".join(packed(f"{i}") + b"\x80" for i in range(400_000))
    ),
    "nested lists": lambda: b"\x81\xa1a" + b"\xdd\x00\xff\xff\xff" * 500_000,
    "nested maps": lambda: b"\x81\xa1a" * 1_000_000,
    "nested extensions": lambda: b"\x81\xa1a" + b"\xc9\x7f\xff\xff\xff\x01" * 100_000,
    "a name of a megabyte": lambda: packed({"x" * 1_000_000: {}}),
    "a name with ../": lambda: packed({"../x": ext((1,), "float32", bytes(4))}),
    "a name that breaks the line": lambda: packed({"a\nb": ext((1,), "float32", bytes(4))}),
    "a list of nothing in an array": lambda: packed(
        {"a": msgpack.ExtType(1, b"\xdd\x00\xff\xff\xff" + b"\xc0" * 16_777_215)}
    ),
    "a shape of millions": lambda: packed({"a": ext((1,) * 3_000_000, "float32", bytes(4))}),
    "bytes behind the end": lambda: packed({"a": ext((1,), "float32", bytes(4))}) + b"\xc0",
    "a dtype that is a program": lambda: packed({"a": ext((1,), "O", bytes(8))}),
}


@pytest.mark.parametrize("name", MSGPACK_BOMBS)
def test_msgpack_bombs(attack: Attack, place: Place, name: str) -> None:
    attack("tensors", place("flax_model.msgpack", MSGPACK_BOMBS[name]()))


# Shards


SHARDS = [
    "../x.safetensors",
    "/etc/x.safetensors",
    "a/../../x.safetensors",
    "..\\x.safetensors",
    "x.py",
    "x\0.safetensors",
]


@pytest.mark.parametrize("shard", SHARDS)
def test_shards_outside_of_the_folder(tmp_path: Path, attack: Attack, place: Place, shard: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(st_file({"a": entry()}))
    index = json.dumps({"weight_map": {"a": shard}}).encode()
    attack("tensors", place("model.safetensors.index.json", index))


INDEX_BOMBS = {
    "a million tensors": lambda: json.dumps(
        {"weight_map": {f"t{i}": "a.safetensors" for i in range(300_000)}}
    ).encode(),
    "lists": lambda: b'{"weight_map": [' + b"[]," * 600_000 + b"[]]}",
    "16,000 shards": lambda: json.dumps({"weight_map": {f"t{i}": f"{i}.safetensors" for i in range(16_000)}}).encode(),
    "a name with ../": lambda: json.dumps({"weight_map": {"../a": "a.safetensors"}}).encode(),
    "deep": lambda: b"[" * 1_000_000,
}


@pytest.mark.parametrize("name", INDEX_BOMBS)
def test_index_bombs(attack: Attack, place: Place, name: str) -> None:
    attack("tensors", place("model.safetensors.index.json", INDEX_BOMBS[name]()))


# Mutations


def other_files(good_files: Mapping[str, bytes]) -> dict[str, bytes]:
    """All but pickles: tensors, configuration, tokenizers."""
    return {name: data for name, data in good_files.items() if not name.endswith(".bin")}


@pytest.mark.fault("hostile model files, other", tries=200)
def test_mutations_of_other_files(fuzz: Fuzz, good_files: Mapping[str, bytes]) -> None:
    fuzz(other_files(good_files), 200)


@pytest.mark.slow
@pytest.mark.fault("hostile model files, other", tries=3000)
def test_three_thousand_mutations_of_other_files(fuzz: Fuzz, good_files: Mapping[str, bytes]) -> None:
    fuzz(other_files(good_files), 3000)


quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "X", ""]) | JSON,
        "shape": st.lists(st.integers(-1, 1 << 65) | st.integers(0, 4), max_size=4) | JSON,
        "data_offsets": st.lists(st.integers(0, 32) | st.integers(-(1 << 65), 1 << 65), max_size=3) | JSON,
    }
)


@pytest.mark.fault("hostile model files, other", tries=150)
@quick
@given(st.dictionaries(st.text(max_size=8) | st.just("__metadata__"), ENTRIES | JSON, max_size=4), st.integers(0, 40))
def test_any_header_is_read_or_refused(place: Place, read_or_refuse: Read, header: dict[str, Any], size: int) -> None:
    read_or_refuse(place("model.safetensors", st_file(header, bytes(size))))


TREES = st.recursive(
    st.builds(
        ext, st.lists(st.integers(0, 5), max_size=3), st.sampled_from(["float32", "int8", "object", "x"]), st.binary()
    )
    | st.none()
    | st.integers(0, 1 << 40)
    | st.binary(max_size=4),
    lambda inner: st.dictionaries(st.text(max_size=5) | st.just("__msgpack_chunked_array__"), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.fault("hostile model files, other", tries=150)
@quick
@given(TREES)
def test_any_tree_is_read_or_refused(place: Place, read_or_refuse: Read, tree: Any) -> None:
    read_or_refuse(place("flax_model.msgpack", packed(tree)))
