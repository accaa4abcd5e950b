"""Conversion of stored numbers to float32, against PyTorch."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from distil_jax.errors import UserError
from distil_jax.hf import read_tensors, release_pages
from distil_jax.hf.lazy_tensor import StoredTensor


def test_every_bfloat16() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    expected = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    actual = StoredTensor((256, 256), "bfloat16", bits).read()
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


def test_transposed_is_a_view() -> None:
    data = np.arange(6, dtype=np.float32).reshape(2, 3)
    turned = StoredTensor((2, 3), "float32", data).transposed()
    assert turned.shape == (3, 2)
    assert np.shares_memory(turned.read(), data)
    np.testing.assert_array_equal(turned.read(), data.T)


def test_unknown_types_have_no_values() -> None:
    with pytest.raises(UserError, match="F8_E5M2"):
        StoredTensor((2,), "F8_E5M2", None).read()


def _resident_file_kib() -> int:
    found = re.search(r"RssFile:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


def test_released_pages_take_no_memory_and_are_read_again(tmp_path: Path) -> None:
    values = np.arange(8 << 20, dtype=np.float32).reshape(1024, -1)  # 32 MiB
    save_file({"a": values}, str(tmp_path / "model.safetensors"))
    read = read_tensors(tmp_path)["a"].T  # as kernels are: a view of a view
    total = read.sum(dtype=np.float64)
    resident = _resident_file_kib()
    release_pages([read, np.zeros(3), 1.0])
    assert resident - _resident_file_kib() > 30 << 10
    assert read.sum(dtype=np.float64) == total
    np.testing.assert_array_equal(read.T, values)
