"""Files of a task's data that would fill memory or take for ever: refused in one line, or read as any other."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from distil_jax.data.rows import Faults, files, repeated
from distil_jax.errors import UserError
from distil_jax.tasks.data import lines
from distil_jax.tasks.data.official import Columns
from distil_jax.tasks.data.tabular import read_json_rows, read_table

COLUMNS = Columns(("text",), label=("label",))
FORMS = {"csv": ("text,label\n", "a,b\n"), "jsonl": ("", '{"text": "a", "label": "b"}\n')}


@pytest.mark.fault("hostile texts")
@pytest.mark.parametrize("form", FORMS)
def test_a_packed_file_that_unfolds_a_thousandfold(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused where it has become too much, not when it is in memory; below the limit it is read."""
    head, row = FORMS[form]
    path = tmp_path / f"a.{form}.gz"
    path.write_bytes(gzip.compress((head + row * (3 << 17)).encode()))
    monkeypatch.setattr(files, "_SMALL", 1 << 20)
    with pytest.raises(UserError) as caught:
        read_table(path, COLUMNS, Faults())
    assert str(caught.value).startswith(f"{path}: unfolds from ")
    monkeypatch.undo()
    assert len(read_table(path, COLUMNS, Faults()).rows) == 3 << 17


@pytest.mark.fault("hostile texts")
def test_a_file_that_memory_would_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "a,b\n" * 1000)
    monkeypatch.setattr(lines, "_LARGEST", 4000)
    with pytest.raises(UserError, match="more than 4000 bytes, too large to be held in memory"):
        read_table(path, COLUMNS, Faults())


@pytest.mark.fault("hostile texts")
def test_a_device_under_the_name_of_a_file(tmp_path: Path) -> None:
    """This one is empty; another would never end."""
    path = tmp_path / "a.csv"
    path.symlink_to("/dev/null")
    with pytest.raises(UserError, match=r"a\.csv: a device or pipe, not a file"):
        read_table(path, COLUMNS, Faults())


@pytest.mark.fault("hostile texts")
def test_a_hundred_thousand_columns(tmp_path: Path) -> None:
    """Comparing each with each would take minutes."""
    names = [f"c{i}" for i in range(100_000)]
    path = tmp_path / "a.csv"
    path.write_text(",".join(["text", *names, "c99999"]) + "\n")
    with pytest.raises(UserError, match="line 1: two columns are called 'c99999'"):
        read_table(path, COLUMNS, Faults())
    rows = tmp_path / "a.jsonl"
    rows.write_text("".join(f'{{"text": "a", "{name}": 1}}\n' for name in names))
    table = read_json_rows(rows, COLUMNS, Faults())
    assert table.columns == ["text", *names]
    assert table.rows[-1].values == {"text": "a"}


@pytest.mark.parametrize(
    ("names", "found"), [([], None), (["a", "b"], None), (["a", "b", "a", "b"], "a"), (["", ""], "")]
)
def test_repeated(names: list[str], found: Any) -> None:
    assert repeated(names) == found
