"""The records of a cached teacher on disk: what was written is read, what is damaged or other is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from distil_jax.data.corpus import CACHE_INDEX, CacheWriter, open_teacher_cache
from distil_jax.errors import UserError

ROWS = 4
RECORD = np.dtype([("ids", "<u2", (3, 2)), ("ratios", "<f2", (3, 2)), ("tail", "<f4", (3,))])
MADE_OF = {"corpus.train": "a" * 64, "run.seed": 0}


def batch(step: int) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(step)
    return {
        "ids": noise.integers(0, 1 << 16, (ROWS, 3, 2)).astype(np.uint16),
        "ratios": noise.random((ROWS, 3, 2)).astype(np.float16),
        "tail": noise.random((ROWS, 3)).astype(np.float32),
    }


def write(folder: Path, commits: Sequence[int]) -> None:
    """Write steps up to each of `commits`, a shard each."""
    folder.mkdir(exist_ok=True)
    writer = CacheWriter(folder, MADE_OF, ROWS, RECORD)
    for end in commits:
        for step in range(writer.cache.steps, end):
            writer.add(batch(step))
        writer.commit()


def test_every_part_of_every_step_is_read_as_written(tmp_path: Path) -> None:
    write(tmp_path, [2, 5])
    write(tmp_path, [6])  # a later command
    cache = open_teacher_cache(tmp_path)
    assert (cache.steps, len(cache.shards), cache.bytes_per_row) == (6, 3, 36)
    assert cache.tail_share() == pytest.approx(batch(5)["tail"].mean())
    for step in (5, 0, 4, 2, 1, 3):
        for part in (slice(0, 4), slice(1, 3)):
            found = cache.read(step, part)
            for name, values in batch(step).items():
                np.testing.assert_array_equal(found[name], values[part])


def test_a_damaged_shard_is_refused_when_it_is_read(tmp_path: Path) -> None:
    write(tmp_path, [2, 4])
    shard = tmp_path / "rows-00001.bin"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    cache = open_teacher_cache(tmp_path)
    cache.read(1, slice(0, 4))
    with pytest.raises(UserError, match=r"rows-00001\.bin: damaged"):
        cache.read(2, slice(0, 4))
    shard.unlink()
    with pytest.raises(UserError, match="missing"):
        open_teacher_cache(tmp_path).read(2, slice(0, 4))
    write(tmp_path, [4])
    assert shard.read_bytes() == content


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b'{"format": "other", "version": 1}'])
def test_a_damaged_index_is_refused(tmp_path: Path, damage: bytes) -> None:
    write(tmp_path, [2])
    index = (tmp_path / CACHE_INDEX).read_bytes()
    for content in (damage, index.replace(b'"steps": 2', b'"steps": 3')):
        (tmp_path / CACHE_INDEX).write_bytes(content)
        with pytest.raises(UserError, match=r"teacher\.json: (damaged|not the index)"):
            open_teacher_cache(tmp_path)


def test_another_cache_or_other_files_are_not_written_over(tmp_path: Path) -> None:
    write(tmp_path, [2])
    with pytest.raises(UserError, match=r"run\.seed = 0, not 1"):
        CacheWriter(tmp_path, {**MADE_OF, "run.seed": 1}, ROWS, RECORD)
    with pytest.raises(UserError, match="hidden"):
        CacheWriter(tmp_path, MADE_OF, ROWS, np.dtype([*RECORD.descr, ("hidden", "<f2", (4,))]))
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        CacheWriter(other, MADE_OF, ROWS, RECORD)
    with pytest.raises(UserError, match="no cache there"):
        open_teacher_cache(other)
