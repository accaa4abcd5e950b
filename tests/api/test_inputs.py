"""Settings, texts and models in the forms that a caller has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distil_jax.api.inputs import make_config, model_folder, rows_of, text_sources
from distil_jax.errors import UserError

TEXTS = ["one line", "two\nlines", "ünïcode \u2028 here"]


def test_settings_by_full_name_or_by_section() -> None:
    given = {"training.steps": 3, "optimizer": {"beta1": 0.5}}
    found = make_config("quickstart", given, {"run.output": "here"})
    assert (found.training.steps, found.optimizer.beta1, found.run.output) == (3, 0.5, "here")
    for wrong in ({"training.step": 3}, {"training": {"steps": "many"}}, {"run": {"output": "there"}}):
        with pytest.raises(UserError):
            make_config(None, wrong, {"run.output": "here"})


@pytest.mark.parametrize("form", ["list", "rows", "columns", "generator", "pandas", "datasets"])
def test_texts_in_memory_are_written_as_they_are(form: str, tmp_path: Path) -> None:
    data: Any = TEXTS
    if form == "rows":
        data = [{"text": text, "other": 1} for text in TEXTS]
    elif form == "columns":
        data = {"text": TEXTS}
    elif form == "generator":
        data = (text for text in TEXTS)
    elif form == "pandas":
        data = pytest.importorskip("pandas").DataFrame({"text": TEXTS})
    elif form == "datasets":
        data = pytest.importorskip("datasets").Dataset.from_dict({"text": TEXTS})
    (source,) = text_sources(data, tmp_path, "train", "text")
    lines = Path(source).read_text(encoding="utf-8").split("\n")[:-1]
    assert [json.loads(line)["text"] for line in lines] == TEXTS


def test_files_stay_where_they_are(tmp_path: Path) -> None:
    assert text_sources("text/*.txt", tmp_path, "train", "text") == ("text/*.txt",)
    assert text_sources([Path("a.txt"), Path("b.txt")], tmp_path, "train", "text") == ("a.txt", "b.txt")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("data", "facts"),
    [
        (["a", 3], ("row 2", "int")),
        (["a", {"title": "b"}], ("row 2", "title", "text_column")),
        ([{"text": "a"}, {"text": b"b"}], ("row 2", "bytes")),
        ({"text": ["a", ["b"]]}, ("row 2", "list")),
    ],
)
def test_what_is_no_text_is_named_as_the_caller_calls_it(data: Any, facts: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        text_sources(data, tmp_path, "validation", "text", argument="validation")
    message = str(caught.value)
    assert message.startswith("validation, ") and 'corpus={"on_error": "skip"}' in message and "task." not in message
    assert all(fact in message for fact in facts)
    (source,) = text_sources(data, tmp_path, "train", "text", on_error="skip")
    assert [json.loads(line)["text"] for line in Path(source).read_text().splitlines()] == ["a"]


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(UserError, match="1 and 2"):
        rows_of({"text": ["a", "b"], "label": [1]})


@pytest.mark.parametrize("row", [{"text": "warm", "label": "good"}, {"text": ["warm"], "label": 1}, {}])
def test_one_row_is_not_columns(row: dict[str, Any]) -> None:
    """Else its texts would be split into characters."""
    with pytest.raises(UserError, match="list"):
        rows_of(row)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    wrong: Any = (1, 2)
    with pytest.raises(UserError, match="tokenizer"):
        model_folder(wrong, tmp_path)
    assert model_folder("org/name", tmp_path) == "org/name"
