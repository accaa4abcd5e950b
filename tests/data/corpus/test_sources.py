from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from distil_jax.data.corpus.sources import ReadState, SourceOptions, check, documents, resolve
from distil_jax.errors import UserError

TEXT = "Title\nFirst line.\r\nÄöü \u2013 second 日本\n\n  \nNext document\n"
LINES = [["Title", "First line.", "Äöü \u2013 second 日本"], ["Next document"]]


def options(**changes: Any) -> SourceOptions:
    usual = {"text_column": "text", "on_error": "stop", "markup": "keep", "max_line_bytes": 64 << 20}
    return SourceOptions(**{**usual, "piece_bytes": 4 << 20, **changes})


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def read(*sources: str | Path, state: ReadState | None = None, **changes: Any) -> list[list[str]]:
    """The lines of every document; pieces of one overlong document are joined again."""
    state, found = state or ReadState(), []
    for source in resolve([*map(str, sources)]):
        for document in documents(source, options(**changes), state):
            lines = [line.decode() for line in document.lines]
            if document.continued:
                found[-1] += lines
            else:
                found.append(lines)
    return found


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("ending", PACKERS)
def test_plain_and_compressed_text(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a.txt{ending}", PACKERS[ending](TEXT.encode()))
    state = ReadState()
    assert read(path, state=state) == LINES
    assert state.bytes_read == path.stat().st_size
    assert state.sha256[str(path)] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("ending", [e for e in PACKERS if e])
def test_several_members_and_text_larger_than_a_chunk(tmp_path: Path, ending: str) -> None:
    parts = [("\n".join(f"line {i} of part {p}" for i in range(90_000)) + "\n").encode() for p in range(2)]
    path = write(tmp_path / f"a.txt{ending}", b"".join(map(PACKERS[ending], parts)))
    assert read(path) == [b"".join(parts).decode().splitlines()]


@pytest.mark.parametrize("ending", [e for e in PACKERS if e])
@pytest.mark.parametrize("damage", ["cut", "flipped", "not packed"])
def test_a_broken_compressed_file_is_named(tmp_path: Path, ending: str, damage: str) -> None:
    packed = bytearray(PACKERS[ending]("\n".join(map(str, range(50_000))).encode()))
    if damage == "cut":
        del packed[-20:]
    elif damage == "flipped":
        packed[2] ^= 0xFF  # inside every format's magic number
    else:
        packed[:] = b"just text\n" * 9
    path = write(tmp_path / f"a.txt{ending}", bytes(packed))
    with pytest.raises(UserError, match=rf"a\.txt\{ending}: broken"):
        read(path, on_error="skip")  # half a file is no bad line: it is never skipped


def test_bom_and_missing_last_newline(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.txt", b"\xef\xbb\xbfone\ntwo")) == [["one", "two"]]


def test_folders_and_globs_are_sorted_and_leave_other_files_out(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt.gz", "sub/c.txt", "d.jsonl"):
        text = json.dumps({"text": name}) if name.endswith("jsonl") else name
        write(tmp_path / name, gzip.compress(text.encode()) if name.endswith("gz") else text)
    for name in ("README.md", ".hidden.txt", "index.tsv.gz"):
        write(tmp_path / name, "no")
    assert read(tmp_path) == [["a.txt.gz"], ["b.txt"], ["d.jsonl"], ["sub/c.txt"]]
    assert read(f"{tmp_path}/**/*.txt") == [["b.txt"], ["sub/c.txt"]]
    assert read(write(tmp_path / "odd[1].txt", "a name with magic")) == [["a name with magic"]]
    with pytest.raises(UserError, match="named twice"):
        resolve([str(tmp_path), str(tmp_path / "b.txt")])


@pytest.mark.parametrize(
    ("source", "words"), [("no.txt", "no such file"), ("*.nothing", "no file matches"), (".", "holds no")]
)
def test_sources_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        resolve([source])
    with pytest.raises(UserError, match="no text sources"):
        resolve([])


BAD = {
    "latin-1": (b"good\nna\xefve\nmore\n", "line 2: not valid UTF-8"),
    "cut character": (b"good\n\xe6\x97\nmore", "line 2: not valid UTF-8"),
    "surrogate": (b"good\n\xed\xa0\x80 x\nmore", "line 2: not valid UTF-8"),
    "NUL": (b"good\na\0b\nmore", "line 2: holds a NUL"),
    "too long": (b"good\n" + b"x" * 3000 + b"\nmore", "line 2: longer than max_line_bytes = 2048"),
    "far too long": (b"good\n" + b"x" * 5_000_000 + b"\nmore", "line 2: longer than"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_lines_stop_or_are_skipped(tmp_path: Path, case: str) -> None:
    data, words = BAD[case]
    path = write(tmp_path / "a.txt", data)
    with pytest.raises(UserError, match=rf"a\.txt, {words}"):
        read(path, max_line_bytes=2048)
    state = ReadState()
    assert read(path, state=state, max_line_bytes=2048, on_error="skip") == [["good", "more"]]
    assert state.bad_lines == 1


def test_an_overlong_last_line_and_utf16(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"good\n" + b"x" * 3_000_000)
    with pytest.raises(UserError, match="line 2: longer"):
        read(path, max_line_bytes=2_000_000)
    assert read(path, max_line_bytes=2_000_000, on_error="skip") == [["good"]]
    assert read(write(tmp_path / "b.txt", "one\ntwo".encode("utf-16"))) == [["one", "two"]]


@pytest.mark.parametrize("data", [b"", b"\n \n\r\n"])
def test_a_file_without_text(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path / "a.txt", data)
    with pytest.raises(UserError, match="holds no text"):
        check(resolve([str(path)]), options())
    assert read(path, on_error="skip") == []


def test_a_document_of_any_length_comes_in_pieces(tmp_path: Path) -> None:
    lines = [f"line {i}" for i in range(1000)]
    path = write(tmp_path / "a.txt", "\n".join(lines) + "\n\nlast\n")
    pieces = [*documents(resolve([str(path)])[0], options(piece_bytes=500), ReadState())]
    assert max(sum(map(len, piece.lines)) for piece in pieces) < 520
    assert [piece.continued for piece in pieces] == [False] + [True] * (len(pieces) - 2) + [False]
    assert read(path, piece_bytes=500) == [lines, ["last"]]


def test_json_lines_keep_the_text_as_it_is(tmp_path: Path) -> None:
    rows: list[Any] = [{"text": "2020-01-01"}, {"text": "a\n\nb", "k": [1]}, {"k": None, "text": ""}, {"text": None}]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    assert read(path) == [["2020-01-01"], ["a", "b"]]
    packed = write(tmp_path / "b.json.gz", gzip.compress(b'{"body": "\\u00e4"}\n'))
    assert read(packed, text_column="body") == [["ä"]]


BAD_ROWS = {
    '{"text": "x"': "not JSON",
    "[1, 2]": "not a JSON object",
    '[{"text":"a"},': "not JSON",
    '{"body": "x", "id": 1}': r"no column 'text' \(found: body, id",
    '{"text": 7}': "holds int, not text",
    '{"text": "\\ud800"}': "not valid Unicode",
    '{"text": "' + "y" * 400 + '"}': "longer than",
}


@pytest.mark.parametrize("row", BAD_ROWS)
def test_bad_json_rows_stop_or_are_skipped(tmp_path: Path, row: str) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"text": "good"}}\n{row}\n{{"text": "more"}}\n')
    with pytest.raises(UserError, match=rf"a\.jsonl, line 2: .*{BAD_ROWS[row]}"):
        read(path, max_line_bytes=300)
    state = ReadState()
    assert read(path, state=state, max_line_bytes=300, on_error="skip") == [["good"], ["more"]]
    assert state.bad_lines == 1


def parquet(path: Path, columns: dict[str, list[Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_parquet(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"text": ["a\nb", None, "", "ç"], "id": [1, 2, 3, 4]})
    state = ReadState()
    assert read(path, state=state) == [["a", "b"], ["ç"]]
    assert state.bytes_read == path.stat().st_size
    assert state.sha256[str(path)] == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=r"a\.parquet: no column 'body' \(found: text, id"):
        check(resolve([str(path)]), options(text_column="body"))
    with pytest.raises(UserError, match=r"a\.parquet, row 1: column 'id' holds int"):
        read(path, text_column="id")


def test_broken_parquet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = parquet(tmp_path / "a.parquet", {"text": ["some text"] * 1000})
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"a\.parquet: not a readable Parquet"):
        check(resolve([str(path)]), options())
    with pytest.raises(UserError, match="compressed inside"):
        resolve([str(write(tmp_path / "b.parquet.gz", b"x"))])
    assert "Failed" not in capfd.readouterr().err


def test_hugging_face_dataset_is_streamed(tmp_path: Path) -> None:
    parquet(tmp_path / "data" / "train.parquet", {"text": ["one", "two"], "id": [1, 2]})
    parquet(tmp_path / "data" / "validation.parquet", {"text": ["held out"], "id": [3]})
    name = f"hf:{tmp_path}/data"
    assert read(name) == [["one"], ["two"]]
    assert read(f"{name}@validation") == [["held out"]]
    with pytest.raises(UserError, match=r"cannot be opened \(Bad split: test"):
        check(resolve([f"{name}@test"]), options())
    with pytest.raises(UserError, match="no column 'body'"):
        check(resolve([name]), options(text_column="body"))
    with pytest.raises(UserError, match=r"hf:someone/nothing: cannot be opened"):
        check(resolve(["hf:someone/nothing"]), options())
    with pytest.raises(UserError, match="no dataset name"):
        check(resolve(["hf:@train"]), options())


def stub_tfds(monkeypatch: pytest.MonkeyPatch, *, prepared: bool) -> list[Any]:
    calls: list[Any] = []

    class Builder:
        data_dir = "/data"
        info = types.SimpleNamespace(features={"text": None, "title": None})

        def is_prepared(self) -> bool:
            return prepared

        def as_data_source(self, split: str) -> list[dict[str, bytes]]:
            calls.append(split)
            return [{"text": b"one\ntwo", "title": b"t"}, {"text": b"na\xef", "title": b"t"}]

    def builder(name: str, **_: Any) -> Builder:
        calls.append(name)
        return Builder()

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", types.SimpleNamespace(builder=builder))
    return calls


def test_tensorflow_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stub_tfds(monkeypatch, prepared=True)
    source = "tfds:wiki/en:1.0.0@validation"
    assert read(source, on_error="skip") == [["one", "two"]]
    assert calls == ["wiki/en:1.0.0", "validation"]
    with pytest.raises(UserError, match=r"wiki/en:1\.0\.0@validation, row 2: column 'text' is not valid Unicode"):
        read(source)
    with pytest.raises(UserError, match="no column 'body'"):
        check(resolve([source]), options(text_column="body"))
    stub_tfds(monkeypatch, prepared=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="not prepared"):
        check(resolve([source]), options())
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"\.\[tfds\]"):
        check(resolve([source]), options())


def test_reading_that_fails_half_way_names_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def rows() -> Any:
        yield {"text": "one"}
        raise ConnectionError("the hub is gone\nwith details")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.IterableDataset.from_generator(rows))
    with pytest.raises(UserError, match=r"hf:x, row 2: reading failed \(the hub is gone\); run the same command again"):
        read("hf:x")


def test_real_text(shared: Path) -> None:
    path = shared / "data" / "text" / "enwiki2015_valid.txt.xz"
    expected: list[list[str]] = [[]]
    with lzma.open(path, "rt", encoding="utf8", newline="\n") as stream:
        lines = stream.read().split("\n")
    for line in lines:
        stripped = line.strip(" \t\r\v\f")
        if stripped:
            expected[-1].append(stripped)
        elif expected[-1]:
            expected.append([])
    assert read(path) == expected[:-1]
    assert len(expected) > 300


REVIEWS = [
    {"id": "1", "review": 'It "works", mostly.', "label": "good"},
    {"id": "2", "review": "Two\nlines", "label": "bad"},
    {"id": "3", "review": "001", "label": "2020-01-01"},
]


@pytest.mark.parametrize(
    "name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet", "a.csv.gz", "semicolons.csv", "array.json"]
)
def test_the_text_column_of_tables(tmp_path: Path, name: str) -> None:
    import pandas

    path, frame = tmp_path / name, pandas.DataFrame(REVIEWS)
    if name.endswith("parquet"):
        frame.to_parquet(path)
    elif "json" in name:
        frame.to_json(path, orient="records", lines=name != "array.json")
    else:
        frame.to_csv(path, index=False, sep=";" if "semi" in name else "\t" if "tsv" in name else ",")
    state = ReadState()
    assert read(path, state=state, text_column="review") == [['It "works", mostly.'], ["Two", "lines"], ["001"]]
    assert state.bytes_read == path.stat().st_size
    assert state.sha256[str(path)] == hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(UserError, match=rf"{name}.*no column 'body' \(found: id, review, label"):
        check(resolve([str(path)]), options(text_column="body"))


def test_bad_rows_of_tables_stop_or_are_skipped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b"text,label\ngood,a\nbad\nmore,c\n")
    with pytest.raises(UserError, match=r"a\.csv, line 3: 1 columns, not 2.*corpus\.on_error"):
        read(path)
    path.write_bytes(path.read_bytes() + b"na\xefve,b\n")
    state = ReadState()
    assert read(path, state=state, on_error="skip") == [["good"], ["more"]]
    assert state.bad_lines == 2


def test_a_separator_that_was_found_is_noted(tmp_path: Path) -> None:
    state = ReadState()
    read(write(tmp_path / "a.csv", "text;label\nx;y\n"), state=state)
    assert any("a.csv" in note and "';'" in note for note in state.notes)


WIKI = (
    b'<doc id="12" url="https://x?curid=12" title="A > B">\nA > B\n\nText of it.\n</doc>\n<doc id="2">\nTwo.\n</doc>\n'
)


def test_markup_of_wikiextractor(tmp_path: Path) -> None:
    path, state = write(tmp_path / "wiki_00", WIKI), ReadState()
    assert read(path, state=state)[0] == ['<doc id="12" url="https://x?curid=12" title="A > B">', "A > B"]
    assert state.markup_lines == 4
    state = ReadState()
    assert read(path, state=state, markup="drop") == [["A > B"], ["Text of it."], ["Two."]]
    assert state.markup_lines == 4
    plain = write(tmp_path / "a.txt", "<doc is a word\nno </doc>\n<document>\n")
    assert read(plain, markup="drop") == [["<doc is a word", "no </doc>", "<document>"]]


@pytest.mark.parametrize(
    ("data", "noted"),
    [
        ('{"id": 1, "text": "a"}\n', True),
        ("id,text\n1,a\n", True),
        ("id\ttext\n1\ta\n", True),
        ("{curly} text, here\n", False),
        ("text\nis what this is\n", False),
        ("A line, then more text.\n", False),
    ],
)
def test_rows_under_the_ending_of_text_are_noted(tmp_path: Path, data: str, noted: bool) -> None:
    state = ReadState()
    assert read(write(tmp_path / "a.txt", data), state=state) == [data.splitlines()]
    assert any("a.txt" in note for note in state.notes) == noted
