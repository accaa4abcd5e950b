"""Text and data from strangers: one clear line before the first step, or skipped and counted, in bounded memory."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import random
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from distil_jax.config import CorpusSettings
from distil_jax.data.corpus.prepare import prepare
from distil_jax.data.corpus.sources import ReadState, SourceOptions, check, documents, resolve
from distil_jax.errors import UserError

pytestmark = pytest.mark.fault("hostile texts")
ROOT = Path(__file__).resolve().parents[3]
LINE = 64 << 20  # bytes, the longest line that is taken by default
# Above what a process has after its imports. A line is held once, packed and unpacked pieces are a megabyte.
REFUSED_MEGABYTES, SKIPPED_MEGABYTES = 120, 160


def options(on_error: str = "stop", piece_bytes: int = 4 << 20) -> SourceOptions:
    return SourceOptions("text", on_error, "keep", LINE, piece_bytes)


READER = r"""
import json, resource, sys, time
from distil_jax.data.corpus.sources import ReadState, SourceOptions, check, documents, resolve
from distil_jax.errors import UserError
import pyarrow.parquet

def memory(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(field))

source, on_error = sys.argv[1:]
before, began, message, count, state = memory("VmRSS"), time.process_time(), "", 0, ReadState()
with open("/proc/self/clear_refs", "w") as handle:
    handle.write("5")
try:
    options = SourceOptions("text", on_error, "keep", 64 << 20, 4 << 20)
    found = resolve([source])
    check(found, options)
    for one in found:
        for document in documents(one, options, state):
            count += 1
except UserError as error:
    message = str(error)
print(json.dumps({"message": message, "documents": count, "bad": state.bad_lines,
                  "megabytes": memory("VmHWM") - before, "seconds": time.process_time() - began}))
"""


def measured(source: Path, on_error: str) -> dict[str, Any]:
    """What reading a source did, in a process of its own, with CPU seconds and peak memory above the start."""
    run = subprocess.run(
        [sys.executable, "-c", READER, str(source), on_error],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return json.loads(run.stdout)


def one_line(path: Path, size: int) -> None:
    """A line of `size` bytes behind a good one, packed as the ending says."""
    openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open, ".zst": zstandard.open}
    with openers.get(path.suffix, open)(path, "wb") as file:
        file.write(b"a good line\n")
        for _ in range(size >> 20):
            file.write(b"x" * (1 << 20))


@pytest.mark.fault("lines of 1 GB", tries=2)
@pytest.mark.parametrize("ending", ["", ".gz", ".xz", ".bz2", ".zst"])
def test_a_line_beyond_the_limit(tmp_path: Path, ending: str) -> None:
    """The line is twice what is taken (a packed one has a few kB); the slow form below is 1 GB."""
    path = tmp_path / f"a.txt{ending}"
    one_line(path, 2 * LINE)
    refused = measured(path, "stop")
    assert refused["message"].startswith(f"{path}, line 2: longer than max_line_bytes = {LINE}")
    assert refused["megabytes"] < REFUSED_MEGABYTES
    skipped = measured(path, "skip")
    assert (skipped["documents"], skipped["bad"], skipped["message"]) == (1, 1, "")
    assert skipped["megabytes"] < SKIPPED_MEGABYTES


@pytest.mark.slow
@pytest.mark.fault("lines of 1 GB", tries=2)
@pytest.mark.parametrize("ending", ["", ".gz", ".xz", ".bz2", ".zst"])
def test_a_line_of_a_gigabyte(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.txt{ending}"
    one_line(path, 1 << 30)
    for on_error, limit in (("stop", REFUSED_MEGABYTES), ("skip", SKIPPED_MEGABYTES)):
        result = measured(path, on_error)
        assert result["megabytes"] < limit, result
        assert bool(result["message"]) == (on_error == "stop") and result["bad"] == 1 - bool(result["message"])
    path.unlink()


def zeros_without_an_end(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(300 << 20)


def greedy_xz(path: Path) -> None:
    """A few bytes whose decoder needs 1.5 GB."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0}]
    data = bytearray(lzma.compress(b"text\n" * 99, filters=filters))
    at = data.index(b"\x21\x01", 12) + 2  # filter LZMA2 with one byte of properties: the size of the dictionary
    data[at] = 40
    head = 12
    length = (data[head] + 1) * 4
    data[head + length - 4 : head + length] = struct.pack("<I", zlib.crc32(data[head : head + length - 4]))
    path.write_bytes(data)


BOMBS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "zeros": ("a.txt", zeros_without_an_end, r"line 1: longer than max_line_bytes"),
    "a greedy decoder": ("a.txt.xz", greedy_xz, r"broken \.xz file, after line 0 \(Memory usage limit exceeded\)"),
    "lists in a row of JSON": (
        "a.jsonl",
        lambda path: path.write_bytes(b'{"text":"a","k":[' + b"[]," * (15 << 20) + b"[]]}\n"),
        r"line 1: a JSON object of more than 1048576 parts",
    ),
    "a text in JSON that does not end": (
        "a.jsonl",
        lambda path: path.write_bytes(b'{"text":"' + b'\\"' * (20 << 20) + b"\n"),
        r"line 1: not JSON: Unterminated string",
    ),
    "deep JSON": ("a.jsonl", lambda path: path.write_bytes(b"[" * (1 << 20) + b"\n"), r"line 1: not JSON: "),
    "a number of a megabyte": (
        "a.jsonl",
        lambda path: path.write_bytes(b'{"text":' + b"9" * (1 << 20) + b"}\n"),
        r"line 1: (not JSON|column 'text' holds int)",
    ),
    "a cell of 500 MB in Parquet": (
        "a.parquet",
        lambda path: parquet(path, ["x" * (500 << 20)]),
        r"row group 1: column 'text' unfolds from \d+ to \d+ bytes",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_or_skipped(tmp_path: Path, name: str) -> None:
    file, make, words = BOMBS[name]
    make(tmp_path / file)
    refused = measured(tmp_path / file, "stop")
    assert refused["message"].startswith(str(tmp_path / file)) and refused["message"].isprintable()
    assert re.search(words, refused["message"]), refused
    assert refused["megabytes"] < 2 * REFUSED_MEGABYTES and refused["seconds"] < 5


def test_a_repeated_cell_of_parquet_is_not_multiplied(tmp_path: Path) -> None:
    """256 rows of one text of 8 MB are 2 GB, but a dictionary of 8 MB on disk."""
    parquet(tmp_path / "a.parquet", ["word " * (8 << 20 >> 3)] * 256)
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 20
    result = measured(tmp_path / "a.parquet", "stop")
    assert (result["documents"], result["message"]) == (256, "")
    assert result["megabytes"] < REFUSED_MEGABYTES


def parquet(path: Path, texts: list[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    cells = pyarrow.array(texts[:1]).dictionary_encode() if len(texts) == 1 else None
    if cells is None:
        cells = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * len(texts)), pyarrow.array(texts[:1]))
    pyarrow.parquet.write_table(pyarrow.table({"text": cells}), path, compression="zstd")


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_the_longest_line_that_is_taken(tmp_path: Path, kind: str) -> None:
    """One character beyond the BMP makes Python hold four bytes for each of the others."""
    text = "\U0001f600 " + "word " * (6 << 20)
    path = tmp_path / {"text": "a.txt", "jsonl": "a.jsonl"}[kind]
    path.write_text(text if kind == "text" else json.dumps({"text": text}, ensure_ascii=False), encoding="utf-8")
    result = measured(path, "stop")
    assert (result["documents"], result["message"]) == (1, "")
    assert result["megabytes"] < {"text": 4, "jsonl": 14}[kind] * (path.stat().st_size >> 20)


def test_a_row_of_many_lines_comes_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "ab\n" * 3000}) + "\n" + json.dumps({"text": "last"}) + "\n")
    pieces = [*documents(resolve([str(path)])[0], options(piece_bytes=900), ReadState())]
    assert [piece.continued for piece in pieces] == [False] + [True] * 9 + [False]
    assert sum(len(piece.lines) for piece in pieces) == 3001


# Files that are no files

PATHS = ["/dev/zero", "/dev/null", "a\0b", "x" * 5000, "~nobody-of-this-name/x", "a\nb", "/proc/self/nothing"]


@pytest.mark.parametrize("path", PATHS)
def test_paths_that_are_no_files(path: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve([path])
    assert str(caught.value).isprintable()


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(UserError, match="a device or pipe"):
        resolve([str(tmp_path / "a.txt")])
    with pytest.raises(UserError, match="the folder holds no"):
        resolve([str(tmp_path)])


# A table of damages

TEXT = "\n".join(f"line {i} of a text that is long enough to be kept by everybody" for i in range(400)).encode()
ROWS = b"\n".join(json.dumps({"text": f"row {i} of a file that has a text"}).encode() for i in range(400))
PACKED = {
    "a.txt.gz": gzip.compress(TEXT),
    "a.txt.xz": lzma.compress(TEXT),
    "a.txt.bz2": bz2.compress(TEXT),
    "a.txt.zst": zstandard.ZstdCompressor().compress(TEXT),
}
TABLE: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.txt", b"", r"a\.txt: holds no text"),
    "blank": ("a.txt", b"\n \r\n\t\n", r"a\.txt: holds no text"),
    "only a BOM": ("a.txt", b"\xef\xbb\xbf", r"a\.txt: holds no text"),
    "binary": ("a.txt", TEXT + b"\n\x7fELF\x02\x01\0\0", r"a\.txt, line 401: holds a NUL byte"),
    "latin-1": ("a.txt", TEXT + b"\nna\xefve", r"a\.txt, line 401: not valid UTF-8 \(byte 3 of the line\)"),
    "cut in a character": ("a.txt", TEXT + "\n日本".encode()[:-1], r"a\.txt, line 401: not valid UTF-8"),
    "UTF-16 cut short": ("a.txt", "one\ntwo".encode("utf-16")[:-1], r"a\.txt: begins as UTF-16"),
    "UTF-32": ("a.txt", "one\ntwo".encode("utf-32"), r"a\.txt, line 1: holds a NUL byte"),
    "NULs": ("a.txt", TEXT + b"\n" + bytes(99), r"a\.txt, line 401: holds a NUL byte"),
    "a gz without its end": ("a.txt.gz", PACKED["a.txt.gz"][:-9], r"a\.txt\.gz: broken \.gz file, after line \d+"),
    "an xz without its end": ("a.txt.xz", PACKED["a.txt.xz"][:-9], r"a\.txt\.xz: broken \.xz file, after line \d+"),
    "a zst without its end": ("a.txt.zst", PACKED["a.txt.zst"][:-9], r"a\.txt\.zst: broken \.zst file, after line"),
    "a bz2 without its end": ("a.txt.bz2", PACKED["a.txt.bz2"][:-9], r"a\.txt\.bz2: broken \.bz2 file, after line"),
    "text called gz": ("a.txt.gz", TEXT, r"a\.txt\.gz: broken \.gz file"),
    "an empty gz member": ("a.txt.gz", gzip.compress(b""), r"a\.txt\.gz: holds no text"),
    "an empty xz": ("a.txt.xz", b"", r"a\.txt\.xz: (broken|holds no text)"),
    "junk behind an xz": ("a.txt.xz", PACKED["a.txt.xz"] + b"junk", r"a\.txt\.xz: broken \.xz file, after line 399"),
    "text called Parquet": ("a.parquet", TEXT, r"a\.parquet: not a readable Parquet file"),
    "an empty Parquet": ("a.parquet", b"", r"a\.parquet: not a readable Parquet file"),
    "JSON cut short": ("a.jsonl", ROWS[:-5], r"a\.jsonl, line 400: not JSON"),
    "an array of JSON": ("a.json", b"[\n" + ROWS, r"a\.json, line 3: not JSON"),
    "a column with a long name": (
        "a.jsonl",
        ROWS + b"\n" + json.dumps({"x\n" * 99999: 1}).encode(),
        r"a\.jsonl, line 401: no column 'text'",
    ),
    "a text of numbers": ("a.jsonl", ROWS + b'\n{"text": [1]}', r"a\.jsonl, line 401: column 'text' holds list"),
    "half a surrogate": ("a.jsonl", ROWS + b'\n{"text": "\\ud83d"}', r"a\.jsonl, line 401: .* is not valid Unicode"),
}


@pytest.mark.parametrize("name", TABLE)
def test_damages_are_named_before_anything_is_made(tmp_path: Path, tiny: Any, name: str) -> None:
    file, data, words = TABLE[name]
    (tmp_path / file).write_bytes(data)
    with pytest.raises(UserError, match=words) as caught:
        prepare(
            CorpusSettings(
                folder=str(tmp_path / "corpus"), train=(str(tmp_path / file),), sequence_length=32, workers=1
            ),
            "train",
            tiny,
        )
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000
    assert not (tmp_path / "corpus" / "index.json").exists()


@pytest.mark.parametrize(
    "name", [name for name, (_, _, words) in TABLE.items() if ", line" in words and "array" not in name]
)
def test_bad_lines_are_skipped_and_counted_on_request(tmp_path: Path, tiny: Any, name: str) -> None:
    file, data, _ = TABLE[name]
    (tmp_path / "good.txt").write_bytes(TEXT)
    (tmp_path / file).write_bytes(data)
    sources = (str(tmp_path / "good.txt"), str(tmp_path / file))
    corpus = prepare(
        CorpusSettings(folder=str(tmp_path / "corpus"), train=sources, sequence_length=32, workers=1, on_error="skip"),
        "train",
        tiny,
    )
    lines = 2 if name.startswith("UTF") else 1
    assert corpus.index["dropped"]["bad_lines"] == lines


def read_or_refuse(path: Path, on_error: str) -> int:
    """The number of documents, or -1 where the file was refused in one line that names it."""
    try:
        sources = resolve([str(path)])
        check(sources, options(on_error=on_error))
        return sum(1 for _ in documents(sources[0], options(on_error=on_error), ReadState()))
    except UserError as error:
        assert str(error).isprintable() and str(error).startswith(str(path)) and len(str(error)) < 1000
        return -1


def seeds() -> dict[str, bytes]:
    import io

    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": [f"row {i}" for i in range(300)]}), buffer)
    return PACKED | {"a.txt": TEXT, "a.jsonl": ROWS, "a.parquet": buffer.getvalue()}


def fuzz(folder: Path, tries: int) -> int:
    """Reads `tries` damaged files -> how many were refused."""
    chance, good, refused = random.Random(7), seeds(), 0
    for number in range(tries):
        name = sorted(good)[number % len(good)]
        bad = bytearray(good[name])
        for _ in range(chance.choice((1, 2, 8))):
            at = chance.randrange(len(bad))
            bad[at : at + chance.choice((0, 1, 8))] = chance.choice(
                (b"\0", b"\xff\xfe", b"\n", b"[" * 50, chance.randbytes(4))
            )
        (folder / name).write_bytes(bad[: chance.randrange(len(bad))] if chance.random() < 0.2 else bad)
        refused += read_or_refuse(folder / name, chance.choice(("stop", "skip"))) < 0
    return refused


@pytest.mark.fault("hostile texts", tries=350)
def test_mutations_are_read_or_refused(tmp_path: Path) -> None:
    assert fuzz(tmp_path, 350) > 100


@pytest.mark.slow
@pytest.mark.fault("hostile texts", tries=3000)
def test_three_thousand_mutations(tmp_path: Path) -> None:
    assert fuzz(tmp_path, 3000) > 1000


@pytest.mark.fault("hostile texts", tries=200)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=12) | st.text(max_size=6).map(str.encode), max_size=8).map(b"\n".join))
@example(b"[\n\x80")
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes) -> None:
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_bytes(data)
        stopped, skipped = (read_or_refuse(tmp_path / name, how) for how in ("stop", "skip"))
        # Whatever is wrong with a line can be skipped. One array of all rows has no lines.
        is_array = name == "a.jsonl" and data.lstrip().startswith(b"[")
        assert (skipped >= 0 or is_array) and stopped in (-1, skipped)
