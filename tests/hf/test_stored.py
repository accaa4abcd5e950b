"""Conversion of stored numbers to float32, against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distil_jax.errors import UserError
from distil_jax.hf.stored import StoredTensor


def test_every_bfloat16() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    theirs = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    ours = StoredTensor((256, 256), "bfloat16", bits).read()
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


def test_transposed_is_a_view() -> None:
    data = np.arange(6, dtype=np.float32).reshape(2, 3)
    turned = StoredTensor((2, 3), "float32", data).transposed()
    assert turned.shape == (3, 2)
    assert np.shares_memory(turned.read(), data)
    np.testing.assert_array_equal(turned.read(), data.T)


def test_unknown_types_have_no_values() -> None:
    with pytest.raises(UserError, match="F8_E5M2"):
        StoredTensor((2,), "F8_E5M2", None).read()
