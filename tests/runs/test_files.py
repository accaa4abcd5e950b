"""Files are written whole or not at all; folders of results are made before the work begins."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from distil_jax.errors import UserError
from distil_jax.hf import file_sha256
from distil_jax.runs.files import json_sha256, require_writable, unfinished, write_atomically


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    for text in ("one\n", "zwei ß\n"):
        write_atomically(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_an_equal_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_atomically(path, "one\n")
    before = path.stat().st_ino
    write_atomically(path, "one\n")
    assert path.stat().st_ino == before


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_atomically(path, "one\n")
    unfinished(path).mkdir()
    with pytest.raises(OSError) as caught:  # noqa: PT011
        write_atomically(path, "two\n")
    assert caught.value.filename == str(unfinished(path))
    assert path.read_text() == "one\n"


def test_files_of_one_name_and_two_kinds_do_not_meet(tmp_path: Path) -> None:
    assert unfinished(tmp_path / "v.npy") != unfinished(tmp_path / "v.parquet")


def test_folders_are_made_and_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    require_writable("--output", tmp_path / "new" / "file.csv")
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == []
    for bad in (Path("/proc/nowhere/file"), tmp_path / "new"):
        with pytest.raises(UserError, match=f"--output {bad}: cannot be written"):
            require_writable("--output", bad)


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()
    assert json_sha256({"b": 1, "a": [1.5, None]}) == json_sha256(json.loads('{"a":[1.5,null],  "b":1}'))
    assert json_sha256({"a": 1}) != json_sha256({"a": 2})
