from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest

from distil_jax.benchmark import accelerators
from distil_jax.benchmark.accelerators import find_target, padding_notes, parse_target
from distil_jax.errors import UserError
from distil_jax.target import Device
from distil_jax.training.flops import peak_flops


@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [
        ("h200", "NVIDIA H200", (1,)),
        ("h100:8", "NVIDIA H100", (8,)),
        ("v5e:4x4", "TPU v5e", (4, 4)),
        ("v4:2x2x1", "TPU v4", (2, 2, 1)),
        ("v6e", "TPU v6e", (1, 1)),
    ],
)
def test_devices_are_called_as_their_sellers_call_them(name: str, kind: str, shape: tuple[int, ...]) -> None:
    accelerator, found = parse_target(name)
    assert (accelerator.kind, found) == (kind, shape)


@pytest.mark.parametrize("name", ["", "h300", "h100:4x4", "v5e:4", "v4:2x2", "h100:0", "h100:99999"])
def test_devices_that_are_not_known_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="--on"):
        parse_target(name)


def test_every_device_has_a_peak() -> None:
    assert all(peak_flops(one.kind) for one in accelerators.ACCELERATORS.values())


@pytest.mark.parametrize(
    ("name", "package", "extra"), [("v5e", "libtpu", "plan-tpu"), ("h100", "jax_plugins", "plan-gpu")]
)
def test_a_compiler_that_is_missing_is_named_with_its_extra(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerators, "find_spec", lambda name: None if name == package else find_spec(name))
    monkeypatch.delitem(sys.modules, package, raising=False)
    for variable in ("JAX_PLATFORMS", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "TPU_SKIP_MDS_QUERY"):
        monkeypatch.setenv(variable, "cpu")
    with pytest.raises(UserError, match=extra):
        find_target(name, "bfloat16")


def test_sizes_that_do_not_fill_a_tile_are_said_for_tpus_alone() -> None:
    sizes = {"a vocabulary": 30_522, "a hidden size": 768, "a head": 64}
    # 30,522 = 238 * 128 + 58; 768 = 6 * 128; two heads of 64 would fill a tile.
    assert padding_notes(Device("tpu"), sizes) == [
        "a vocabulary of 30,522 takes the place of 30,592 in tiles of 128: 0.2% more",
        "a head of 64 takes the place of 128 in tiles of 128: 100.0% more",
    ]
    assert padding_notes(Device("cuda", (9, 0)), sizes) == padding_notes(Device("cpu"), sizes) == []
