"""The quickstart with a few steps a stage: everything it makes, and that it makes it once."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from distil_jax.config import load_config
from distil_jax.errors import UserError
from distil_jax.evaluation import python_text, quickstart
from distil_jax.evaluation.heldout import fill_mask, load_language_model

STEPS = {"quickstart_teacher": 3, "quickstart": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The quickstart's folder and the text it returned, over the first documents only."""
    folder = tmp_path_factory.mktemp("quickstart") / "here"
    documents = list(itertools.islice(python_text.python_documents(), 60))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(python_text, "python_documents", lambda: iter(documents))
        patch.setattr(quickstart, "VOCABULARY", 600)
        yield folder, quickstart.make_quickstart(folder, steps=STEPS)


def test_the_table_has_every_model_and_measure(made: Any) -> None:
    _, text = made
    parts = [part.splitlines() for part in text.split("\n\n") if part.startswith("| model")]
    tables = [[[cell.strip() for cell in line.split("|")[1:-1]] for line in (part[0], *part[2:])] for part in parts]
    assert max(len(line) for part in parts for line in part) <= 80
    assert [name for table in tables for name in table[0][1:]] == [
        "parameters", "MB on disk", "held-out loss", "perplexity", "accuracy", "KL to teacher", "agreement", "CPU ms",
        "predictions",
    ]  # fmt: skip
    labels = [quickstart.TEACHER, quickstart.START, *quickstart.STUDENTS]
    rows: dict[str, dict[str, str]] = {}
    for head, *body in tables:
        for row in body:
            rows.setdefault(row[0], {}).update(zip(head[1:], row[1:], strict=True))
    assert list(rows) == labels
    for label, row in rows.items():
        missing = {name for name, cell in row.items() if not cell}
        wanted = {quickstart.TEACHER: {"KL to teacher", "agreement"}, quickstart.START: {"MB on disk"}}
        assert missing == wanted.get(label, set()), label
    assert len({row["parameters"] for row in rows.values()}) == 2
    assert len({row["predictions"] for row in rows.values()}) == 1
    assert text.count("%,") == 2 * len(labels), "three answers of each model"


def test_no_two_models_are_the_same(made: Any) -> None:
    folder, _ = made
    results = json.loads((folder / "results.json").read_text())
    assert len({row["measures"]["mlm_loss"] for row in results.values()}) == len(results) == 4


def test_sizes_are_those_of_the_shipped_configurations(made: Any) -> None:
    folder, _ = made
    layers = {name: load_language_model(str(folder / name)).encoder.num_layers for name in ("teacher", "student")}
    assert layers == {"teacher": 4, "student": 2}


def test_the_students_to_compare_with_have_less_of_the_teacher(made: Any) -> None:
    folder, _ = made
    found = {}
    for name in ("student", "student_alone"):
        config = load_config(folder / f"{name}_run" / "config.toml")
        objective = config.objective
        found[name] = (objective.kl > 0, objective.mlm > 0, objective.cosine > 0, config.student.init)
        assert config.training.steps == 2
    assert found == {
        "student": (True, True, True, "teacher"),
        "student_alone": (False, True, False, "random"),
    }


def test_the_student_fills_masks_in_pytorch_as_it_does_here(made: Any) -> None:
    from transformers import AutoTokenizer, DistilBertForMaskedLM, pipeline

    folder, _ = made
    loaded: Any = DistilBertForMaskedLM.from_pretrained(folder / "student", output_loading_info=True)
    model, loading = loaded
    assert not any(loading.values()), loading
    reference: Any = pipeline("fill-mask", model=model, tokenizer=AutoTokenizer.from_pretrained(folder / "student"))
    expected = [(row["token_str"], row["score"]) for row in reference(quickstart.SENTENCE, top_k=5)]
    found = fill_mask(load_language_model(str(folder / "student")), quickstart.SENTENCE, top=5)
    assert [token for token, _ in found] == [token for token, _ in expected]
    assert [value for _, value in found] == pytest.approx([value for _, value in expected], abs=1e-4)


def test_again_it_says_that_it_is_done(made: Any) -> None:
    folder, text = made
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again = quickstart.make_quickstart(folder, steps=STEPS)
    assert "everything is done already" in again
    assert again.endswith(text)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("left", [None, '{"teacher": {"measu'], ids=["nothing", "a torn file"])
def test_stages_that_are_done_are_not_done_again(left: str | None, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted while it measured or wrote: the three runs are finished, only the measures are missing."""
    from distil_jax.training import loop

    folder, text = made
    found = json.loads((folder / "results.json").read_text())
    (folder / "results.json").unlink()
    if left is not None:
        (folder / "results.json").write_text(left)
    monkeypatch.setattr(loop, "_train", lambda *_: pytest.fail("a finished run was trained again"))
    monkeypatch.setattr(quickstart, "train_wordpiece", lambda *_: pytest.fail("the vocabulary was trained again"))
    monkeypatch.setattr(quickstart, "_measure", lambda *_: found)
    assert quickstart.make_quickstart(folder, steps=STEPS) == text
    assert json.loads((folder / "results.json").read_text()) == found


def test_a_folder_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and not a quickstart"):
        quickstart.make_quickstart(tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        quickstart.make_quickstart(tmp_path / "thesis.txt" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
