"""The part of a checkpoint that cannot be read is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from distil_jax.training.diagnosis import unreadable_part


@pytest.fixture
def step(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of a checkpoint."""
    return shutil.copytree(tiny_run / "checkpoints" / "2", tmp_path / "2")


def test_a_whole_one(step: Path) -> None:
    assert unreadable_part(step) is None


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("hashes/metadata", "hashes"),
        ("metadata/metadata", "metadata"),
        ("params/_METADATA", "params/_METADATA"),
        ("optimizer/_sharding", "optimizer/_sharding"),
    ],
)
@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_a_file_is_named(file: str, part: str, damage: str, step: Path) -> None:
    if damage == "missing":
        (step / file).unlink()
    else:
        (step / file).write_text("{")
    found = unreadable_part(step)
    assert found is not None
    assert found[0] == part


def test_a_leaf_is_named(step: Path) -> None:
    """All data of the parameters are gone."""
    for path in (step / "params").rglob("d"):
        shutil.rmtree(path)
    found = unreadable_part(step)
    assert found is not None
    assert found[0].startswith(("encoder.", "mlm_head."))
