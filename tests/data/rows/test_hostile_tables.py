"""Files of a task's data that would fill memory or take for ever: refused in one line, or read as any other."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from distil_jax.data.rows import ReadOptions, read_table
from distil_jax.errors import UserError

OPTIONS = ReadOptions(wanted=("text",), keep=("text", "label"))
FORMS = {"csv": ("text,label\n", "a,b\n"), "jsonl": ("", '{"text": "a", "label": "b"}\n')}


@pytest.mark.fault("hostile texts")
@pytest.mark.parametrize("form", FORMS)
def test_a_packed_file_that_unfolds_a_thousandfold(form: str, tmp_path: Path) -> None:
    """It is refused where it has become too much, before there are rows of it."""
    head, row = FORMS[form]
    path = tmp_path / f"a.{form}.gz"
    path.write_bytes(gzip.compress((head + row * (1 + (65 << 20) // len(row))).encode()))
    with pytest.raises(UserError) as caught:
        read_table(path, OPTIONS)
    assert str(caught.value).startswith(f"{path}: unfolds from ")
    path.write_bytes(gzip.compress((head + row * 10_000).encode()))
    assert len(read_table(path, OPTIONS).rows) == 10_000


@pytest.mark.fault("hostile texts")
def test_a_file_that_memory_would_not_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with path.open("wb") as file:
        file.write(b"text,label\na,b\n")
        file.truncate((1 << 30) + 1)
    with pytest.raises(UserError, match=r"a\.csv: more than \d+ bytes, too large to be held in memory"):
        read_table(path, OPTIONS)


@pytest.mark.fault("hostile texts")
def test_a_device_under_the_name_of_a_file(tmp_path: Path) -> None:
    """This one is empty; another would never end."""
    path = tmp_path / "a.csv"
    path.symlink_to("/dev/null")
    with pytest.raises(UserError, match=r"a\.csv: a device or pipe, not a file"):
        read_table(path, OPTIONS)


@pytest.mark.fault("hostile texts")
def test_a_hundred_thousand_columns(tmp_path: Path) -> None:
    """Comparing each with each would take minutes."""
    names = [f"c{i}" for i in range(100_000)]
    path = tmp_path / "a.csv"
    path.write_text(",".join(["text", *names, "c99999"]) + "\n")
    with pytest.raises(UserError, match="line 1: two columns are called 'c99999'"):
        read_table(path, OPTIONS)
    rows = tmp_path / "a.jsonl"
    rows.write_text("".join(f'{{"text": "a", "{name}": 1}}\n' for name in names))
    table = read_table(rows, OPTIONS)
    assert table.columns == ["text", *names]
    assert table.rows[-1].values == {"text": "a"}
