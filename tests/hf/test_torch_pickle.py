"""pytorch_model.bin: what torch.save writes is read, whatever else a pickle can do is not."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._utils import _rebuild_tensor_v2

from distil_jax.errors import UserError
from distil_jax.hf.torch_pickle import read_torch_file

CASES = {
    "plain": lambda: torch.arange(6.0).reshape(2, 3),
    "transposed": lambda: torch.arange(6.0).reshape(2, 3).T,
    "window": lambda: torch.arange(20.0).reshape(4, 5)[1:3, 1:4],
    "every second": lambda: torch.arange(20.0)[::2],
    "scalar": lambda: torch.tensor(3.0),
    "empty": lambda: torch.zeros(0, 4),
    "long": lambda: torch.arange(5),
    "bool": lambda: torch.tensor([True, False]),
    "uint8": lambda: torch.arange(5, dtype=torch.uint8),
    "parameter": lambda: torch.nn.Parameter(torch.arange(3.0)),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_torch_saves_is_what_is_read(tmp_path: Path, zipped: bool) -> None:
    state = OrderedDict((name, make()) for name, make in CASES.items())
    state["shared"] = state["plain"]
    torch.save(state, tmp_path / "m.bin", _use_new_zipfile_serialization=zipped)
    found = read_torch_file(tmp_path / "m.bin")
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        values = found[name].read()
        np.testing.assert_array_equal(values, tensor.detach().numpy(), err_msg=name)
        assert values.dtype == tensor.detach().numpy().dtype


class _Evil:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.flag,)


def _zip(folder: Path, program: bytes, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(folder / "m.bin", "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
    return folder / "m.bin"


@pytest.mark.parametrize("where", ["zip", "legacy", "bare"])
def test_code_is_not_run(tmp_path: Path, where: str) -> None:
    flag = tmp_path / "was_run"
    state = {"a": torch.zeros(2), "b": _Evil(flag)}
    if where == "bare":
        (tmp_path / "m.bin").write_bytes(pickle.dumps(state["b"]))
    else:
        torch.save(state, tmp_path / "m.bin", _use_new_zipfile_serialization=where == "zip")
    with pytest.raises(UserError, match=r"m\.bin"):
        read_torch_file(tmp_path / "m.bin")
    assert not flag.exists()
    torch.load(tmp_path / "m.bin", weights_only=False) if where != "bare" else pickle.loads(pickle.dumps(state["b"]))
    assert flag.exists()  # the file is a working attack


class _Pickler(pickle._Pickler):
    """Writes storages as torch.save does, but with whatever geometry a test asks for."""

    def persistent_id(self, obj: Any):
        return ("storage", torch.FloatStorage, obj.key, "cpu", obj.count) if isinstance(obj, _Storage) else None


class _Storage:
    def __init__(self, key: str, count: int) -> None:
        self.key, self.count = key, count


class _Rebuild:
    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _rebuild_tensor_v2, self.arguments


def _program(count: int, offset: object, shape: object, strides: object) -> bytes:
    buffer = io.BytesIO()
    state = {"a": _Rebuild(_Storage("0", count), offset, shape, strides, False, OrderedDict())}
    _Pickler(buffer, 2).dump(state)
    return buffer.getvalue()


def test_the_geometry_helper_makes_good_files(tmp_path: Path) -> None:
    path = _zip(tmp_path, _program(6, 1, (2, 2), (2, 1)), {"0": np.arange(6, dtype="<f4").tobytes()})
    np.testing.assert_array_equal(read_torch_file(path)["a"].read(), [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("count", "offset", "shape", "strides"),
    [
        (6, 3, (2, 2), (2, 1)),
        (6, -1, (2,), (1,)),
        (6, 0, (2,), (-1,)),
        (6, 0, (7,), (0,)),
        (6, 0, (1 << 40,), (0,)),
        (6, 0, (2, 3), (3,)),
        (6, 0, [6], (1,)),
        (6, 0, (6.0,), (1,)),
        (6, 1 << 70, (1,), (1,)),
        (6, True, (1,), (1,)),
        (1 << 40, 0, (1 << 40,), (1,)),
        (-6, 0, (1,), (1,)),
        (7, 0, (6,), (1,)),
        (6, 0, (1,) * 9, (1,) * 9),
    ],
)
def test_windows_beyond_the_storage_are_refused(
    tmp_path: Path, count: int, offset: Any, shape: Any, strides: Any
) -> None:
    path = _zip(tmp_path, _program(count, offset, shape, strides), {"0": np.arange(6, dtype="<f4").tobytes()})
    with pytest.raises(UserError, match="not a plain PyTorch state dict"):
        read_torch_file(path)


def test_a_claimed_length_is_not_allocated(tmp_path: Path) -> None:
    """BINUNICODE8 with 2^61 bytes announced, in both kinds of file."""
    program = b"\x80\x02\x8d" + (1 << 61).to_bytes(8, "little") + b"abc."
    (tmp_path / "legacy.bin").write_bytes(program)
    for path in (tmp_path / "legacy.bin", _zip(tmp_path, program, {})):
        with pytest.raises(UserError, match=r"\.bin"):
            read_torch_file(path)


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    path = _zip(tmp_path, _program(6, 0, (6,), (1,)), {"0": bytes(24)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed"):
        read_torch_file(path)


@pytest.mark.parametrize(
    "content", [torch.zeros(3), [torch.zeros(3)], {"a": 3}, {"a": {"b": torch.zeros(3)}}, {1: torch.zeros(1)}]
)
def test_only_flat_state_dicts(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "m.bin")
    with pytest.raises(UserError, match="state dict"):
        read_torch_file(tmp_path / "m.bin")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_mutations_never_give_a_wrong_tensor(tmp_path: Path, zipped: bool) -> None:
    """Flipped bytes are refused or change nothing; the legacy stream has no checksum, so there values may differ."""
    state = {"word": torch.arange(12.0).reshape(3, 4), "bias": torch.ones(4)}
    torch.save(state, tmp_path / "m.bin", _use_new_zipfile_serialization=zipped)
    good = (tmp_path / "m.bin").read_bytes()
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(400):
        bad = bytearray(good)
        bad[rng.integers(len(bad))] ^= int(rng.integers(1, 256))
        bad = bad[: rng.integers(len(bad))] if rng.random() < 0.1 else bad
        (tmp_path / "m.bin").write_bytes(bytes(bad))
        try:
            found = read_torch_file(tmp_path / "m.bin")
            values = {name: tensor.read() for name, tensor in found.items()}  # checksums are looked at here
        except UserError as error:
            messages.append(str(error))
            continue
        if zipped:
            for name, array in values.items():
                if name in state and array.shape == tuple(state[name].shape) and array.dtype == np.float32:
                    np.testing.assert_array_equal(array, state[name].numpy())
    assert len(messages) > 50
    assert not [message for message in messages if "\n" in message]
