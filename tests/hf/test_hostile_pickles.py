"""Pickles from strangers: none of them runs, nothing else is touched, and a refusal is cheap."""

from __future__ import annotations

import copyreg
import functools
import io
import os
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distil_jax.errors import UserError
from distil_jax.hf.read import read_tensors

pytestmark = pytest.mark.fault("hostile pickles")
Attack = Callable[..., dict[str, Any]]
Place = Callable[[str, bytes], Path]
Fuzz = Callable[[Mapping[str, bytes], int], None]
Read = Callable[[Path], None]


class Evil:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def short_text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def payloads(flag: Path) -> dict[str, bytes]:
    """Pickles that make the file `flag` in ten and more different ways when Python loads them."""
    command, source = f"touch {flag}", f"open({str(flag)!r}, 'w').close()"
    system = b"cos\nsystem\n"
    text = short_text(command)
    return {
        "system, protocol 0": pickle.dumps(Evil(os.system, command), 0),
        "system, protocol 2": pickle.dumps(Evil(os.system, command), 2),
        "system, protocol 4": pickle.dumps(Evil(os.system, command), 4),
        "eval": pickle.dumps(Evil(eval, source), 2),
        "exec": pickle.dumps(Evil(exec, source), 2),
        "subprocess": pickle.dumps(Evil(subprocess.call, ["touch", str(flag)]), 2),
        "a method of pathlib": pickle.dumps(Evil(Path.touch, flag), 4),
        "partial, by BUILD": pickle.dumps(Evil(functools.partial(os.system, command)), 2),
        "INST": b"(S" + repr(command).encode() + b"\nios\nsystem\n.",
        "OBJ": b"(" + system + text + b"o.",
        "NEWOBJ of map": b"\x80\x02cbuiltins\nbytes\ncbuiltins\nmap\n" + system + b"]" + text + b"a\x86\x81\x85\x81.",
        "EXT1": b"\x80\x02\x82\xf0(" + text + b"tR.",
        "hidden behind a state dict": b"\x80\x02}" + short_text("a") + system + b"(" + text + b"tR" + b"s.",
        "popped again": b"\x80\x02" + system + b"(" + text + b"tR0}.",
    }


PAYLOADS = [*payloads(Path("x"))]


@pytest.fixture
def extension() -> Iterator[None]:
    """os.system under the pickle extension code that one of the payloads uses."""
    copyreg.add_extension(os.system.__module__, "system", 0xF0)
    yield
    copyreg.remove_extension(os.system.__module__, "system", 0xF0)


def zipped(program: bytes, members: dict[str, bytes] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in ({"data.pkl": program} | (members or {})).items():
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def legacy(program: bytes) -> bytes:
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(part, 2) for part in head) + program + pickle.dumps([], 2)


WRAPPERS = {"zip": zipped, "legacy": legacy, "bare": bytes}


@pytest.mark.fault("hostile pickles", tries=0)
@pytest.mark.parametrize("name", PAYLOADS)
@pytest.mark.usefixtures("extension")
def test_payloads_are_working_attacks(tmp_path: Path, name: str) -> None:
    pickle.loads(payloads(tmp_path / "flag")[name])
    assert (tmp_path / "flag").exists()


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", PAYLOADS)
def test_no_payload_runs(tmp_path: Path, attack: Attack, place: Place, name: str, wrapper: str) -> None:
    data = WRAPPERS[wrapper](payloads(tmp_path / "flag")[name])
    attack("tensors", place("pytorch_model.bin", data))
    assert not (tmp_path / "flag").exists()


def doubled_tuples(levels: int) -> bytes:
    """A tuple of two tuples of two tuples ...: a hundred bytes that stand for 2^levels of them."""
    step = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(levels))
    return b"\x80\x02)" + step


def many_members(count: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(count):
            archive.writestr(f"a/{number}", b"")
        archive.writestr("a/data.pkl", b"\x80\x02}.")
    return buffer.getvalue()


def storage_program(count: int, key: str = "0") -> bytes:
    class Pickler(pickle._Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", torch.FloatStorage, key, "cpu", count) if obj is marker else None

    marker, buffer = object(), io.BytesIO()

    class Tensor:
        def __reduce__(self) -> Any:
            from collections import OrderedDict

            rebuild: Any = getattr(torch, "_utils")._rebuild_tensor_v2  # noqa: B009
            return rebuild, (marker, 0, (count,), (1,), False, OrderedDict())

    Pickler(buffer, 2).dump({"a": Tensor()})
    return buffer.getvalue()


def claimed_size() -> bytes:
    """A stored member whose header claims a terabyte."""
    data = zipped(storage_program(4), {"data/0": bytes(16)})
    at = data.rindex(b"archive/data/0") - 46
    return data[: at + 20] + struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0) + data[at + 28 :]


PICKLE_BOMBS: dict[str, Callable[[], bytes]] = {
    "a million instructions": lambda: zipped(b"\x80\x02" + b"N" * 2_000_000 + b"."),
    "a program of 60 MB": lambda: zipped(b"\x80\x02" + b"N" * 60_000_000 + b"."),
    "a million dictionaries": lambda: legacy(b"\x80\x02" + b"}" * 2_000_000 + b"."),
    "a text of 60 MB": lambda: legacy(b"\x80\x02X" + struct.pack("<I", 60_000_000) + bytes(60_000_000) + b"."),
    "a claimed text": lambda: legacy(b"\x80\x02\x8d" + struct.pack("<Q", 1 << 60) + b"."),
    "doubled tuples as state": lambda: zipped(doubled_tuples(60) + b"."),
    "doubled tuples as storage keys": lambda: (
        b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {}))
        + b"\x80\x02}."
        + doubled_tuples(60).replace(b"\x80\x02", b"\x80\x02](", 1)
        + b"e."
    ),
    "deep tuples": lambda: zipped(b"\x80\x02)" + b"\x85" * 300_000 + b"."),
    "a number of a million digits": lambda: zipped(b"I" + b"9" * 1_000_000 + b"\n."),
    "a storage name with ../": lambda: zipped(storage_program(4, "../../../x"), {"data/0": bytes(16)}),
    "a storage of a terabyte": lambda: zipped(storage_program(1 << 38), {"data/0": bytes(16)}),
    "a member that claims 4 GB": claimed_size,
    "60,000 members": lambda: many_members(60_000),
    "no members": lambda: zipped(b"."),
    "a name of a megabyte": lambda: zipped(b"\x80\x02}" + short_text("x" * 1_000_000) + b"Ns."),
    "a name that breaks the line": lambda: zipped(b"\x80\x02}" + short_text("a\n\x1b[2Jb") + b"Ns."),
    "a reference that breaks the line": lambda: zipped(
        b"\x80\x04" + short_text("a\nb") + short_text("c\nd") + b"\x93."
    ),
}


@pytest.mark.parametrize("name", PICKLE_BOMBS)
def test_pickle_bombs(attack: Attack, place: Place, name: str) -> None:
    attack("tensors", place("pytorch_model.bin", PICKLE_BOMBS[name]()))


# Mutations


def pickle_seeds(good_files: Mapping[str, bytes], flag: Path) -> dict[str, bytes]:
    seeds = {name: data for name, data in good_files.items() if name.endswith(".bin")}
    for name, program in payloads(flag).items():
        for wrapper, wrap in WRAPPERS.items():
            seeds[f"{wrapper} {name}/pytorch_model.bin"] = wrap(program)
    return seeds


@pytest.mark.fault("hostile pickles", tries=300)
def test_mutations_of_pickles(tmp_path: Path, fuzz: Fuzz, good_files: Mapping[str, bytes]) -> None:
    fuzz(pickle_seeds(good_files, tmp_path / "flag"), 300)
    assert not (tmp_path / "flag").exists()


@pytest.mark.slow
@pytest.mark.fault("hostile pickles", tries=3000)
def test_three_thousand_mutations_of_pickles(tmp_path: Path, fuzz: Fuzz, good_files: Mapping[str, bytes]) -> None:
    fuzz(pickle_seeds(good_files, tmp_path / "flag"), 3000)
    assert not (tmp_path / "flag").exists()


OPCODES = [bytes([code]) for code in b"NRtq(}]lsuabe)\x85\x86\x87\x88\x89\x94h0QP2c\x93\x81"]
PARTS = st.one_of(
    st.sampled_from(OPCODES),
    st.integers(0, 300).map(lambda n: b"J" + struct.pack("<i", n - 100)),
    st.sampled_from(["storage", "0", "cpu", "a", "torch", "FloatStorage", "collections"]).map(short_text),
    st.sampled_from(
        [b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"]
    ),
    st.integers(0, 3).map(lambda n: b"q" + bytes([n])),
    st.integers(0, 3).map(lambda n: b"h" + bytes([n])),
)
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.fault("hostile pickles", tries=150)
@quick
@given(st.lists(PARTS, max_size=40))
def test_any_program_is_read_or_refused(place: Place, read_or_refuse: Read, parts: list[bytes]) -> None:
    program = b"\x80\x02" + b"".join(parts) + b"."
    for wrap in (zipped, legacy):
        read_or_refuse(place("pytorch_model.bin", wrap(program)))


def test_a_checksum_is_looked_at_when_values_are_read(place: Place) -> None:
    data = zipped(storage_program(4), {"data/0": np.arange(4, dtype="<f4").tobytes()})
    folder = place("pytorch_model.bin", data)
    np.testing.assert_array_equal(read_tensors(folder)["a"], np.arange(4))
    flipped = bytearray(data)
    flipped[data.index(np.float32(3).tobytes())] ^= 1
    with pytest.raises(UserError, match=r"data/0: damaged .*CRC-32"):
        read_tensors(place("pytorch_model.bin", bytes(flipped)))
