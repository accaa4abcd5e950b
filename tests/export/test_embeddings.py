"""`distil-jax embed`: files and pipes in, .npy, Parquet and JSON Lines out, in the order of the rows."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest

from distil_jax import cli, encode
from distil_jax.export.embeddings import VectorFile

TEXTS = ["the cat sat", "", "a dog ran fast", "red fish", "the moon over the sea, old and big"]
WANTED = [text for text in TEXTS if text]


@pytest.fixture(scope="module")
def model(model_folder: Callable[..., str]) -> str:
    return model_folder()


@pytest.fixture(scope="module")
def expected(model: str) -> np.ndarray:
    return encode(model, WANTED)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    (tmp_path / "in.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return tmp_path / "in.txt"


def test_vectors_alone(model: str, lines: Path, expected: np.ndarray, tmp_path: Path, capsys: object) -> None:
    assert cli.main(["embed", model, str(lines), "--output", str(tmp_path / "out.npy"), "--batch-size", "2"]) == 0
    found = np.load(tmp_path / "out.npy", mmap_mode="r")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.txt", "out.npy"]


def test_json_lines_have_the_number_of_the_row(model: str, lines: Path, expected: np.ndarray, tmp_path: Path) -> None:
    assert cli.main(["embed", model, str(lines), "--output", str(tmp_path / "out.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [0, 2, 3, 4]
    np.testing.assert_allclose([row["embedding"] for row in rows], expected, atol=1e-6)


def test_parquet_keeps_the_columns_of_the_input(model: str, expected: np.ndarray, tmp_path: Path) -> None:
    pandas.DataFrame({"key": range(len(WANTED)), "body": WANTED}).to_csv(tmp_path / "in.csv", index=False)
    arguments = [model, str(tmp_path / "in.csv"), "--output", str(tmp_path / "out.parquet"), "--text-column", "body"]
    assert cli.main(["embed", *arguments]) == 0
    found = pandas.read_parquet(tmp_path / "out.parquet")
    assert list(found["body"]) == WANTED and found["embedding"][0].dtype == np.float32
    np.testing.assert_allclose(np.stack([*found["embedding"]]), expected, atol=1e-6)


def test_a_pipe_is_answered_on_standard_output(
    model: str, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = io.BufferedReader(io.BytesIO("\n".join(WANTED).encode()))  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=pipe))
    assert cli.main(["embed", model, "-"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_allclose([row["embedding"] for row in rows], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("more", "fact"),
    [
        (["--output", "out.csv"], "out.csv"),
        (["--output", "out.jsonl.gz"], "out.jsonl.gz"),
        (["--output", "in.txt"], "in.txt"),
        (["--output", "out.npy", "--prompt", "query"], "query"),
        (["--output", "out.npy", "--text-column", "body", "--max-length", "4000"], "4000"),
    ],
)
def test_mistakes_leave_nothing_behind(
    model: str, lines: Path, more: list[str], fact: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [str(lines.parent / one) if "." in one else one for one in more]
    assert cli.main(["embed", model, str(lines), *more]) == 2
    assert fact in capsys.readouterr().err
    assert [path.name for path in lines.parent.iterdir()] == ["in.txt"]


def test_a_row_without_text_stops_or_is_left_out(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "the cat"}\n{"text": 3}\n{"text": "a dog"}\n')
    command = ["embed", model, str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.npy")]
    assert cli.main(command) == 2
    assert "line 2" in capsys.readouterr().err
    assert not (tmp_path / "out.npy").exists()
    assert cli.main([*command, "--on-error", "skip"]) == 0
    assert np.load(tmp_path / "out.npy").shape == (2, 16)


def test_a_vector_file_takes_any_number_of_rows(tmp_path: Path) -> None:
    file = VectorFile(tmp_path / "x.npy", 3)
    rows = np.arange(36, dtype=np.float32).reshape(12, 3)
    for first in range(0, 12, 5):
        file.write([*rows[first : first + 5]])
    file.close()
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), rows)
