"""Packed files: their content, their hash, and what is broken."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from distil_jax.data.rows import compression_of, open_chunks, suffix_of
from distil_jax.errors import UserError

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
CONTENT = b"".join(b"line %d\n" % i for i in range(300_000))


@pytest.mark.parametrize("ending", PACKERS)
def test_content_and_hash(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.csv{ending}"
    path.write_bytes(PACKERS[ending](CONTENT))
    raw, chunks = open_chunks(path)
    assert raw.sha256 == "" and raw.size == path.stat().st_size
    parts = [*chunks]
    assert b"".join(parts) == CONTENT and max(map(len, parts)) <= 1 << 20
    assert raw.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert raw.position == raw.size and raw.closed


@pytest.mark.parametrize("ending", [ending for ending in PACKERS if ending])
def test_a_broken_file_is_named(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.csv{ending}"
    path.write_bytes(PACKERS[ending](CONTENT)[:-20])
    with pytest.raises(UserError, match=rf"a\.csv\{ending}: broken.*after line \d+"):
        list(open_chunks(path)[1])
    with pytest.raises(UserError, match="none.csv: cannot be read"):
        open_chunks(tmp_path / "none.csv")


def test_endings() -> None:
    assert suffix_of(Path("a.b.JSONL.xz")) == ".jsonl" and suffix_of(Path("a.gz")) == "" and suffix_of(Path("a")) == ""
    assert compression_of(Path("a.txt.GZ")) == "gz" and compression_of(Path("a.txt")) == ""
