"""Training from Python: what is in memory gives the same model as the files it was read from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import distil_jax
from distil_jax.config import config_from_toml, with_overrides
from distil_jax.errors import UserError
from distil_jax.training.distill import distill as distill_config

RUN: dict[str, Any] = {
    "student": {"layers": [1]},
    "training": {"steps": 2, "batch_size": 8, "micro_batch_size": 8},
    "parallel": {"devices": 1},
    "logging": {"tensorboard": False, "progress": "none"},
    "corpus": {"sequence_length": 24, "min_tokens": 6},
    "evaluation": {"rows": 8, "batch_size": 8},
}


@pytest.fixture(scope="module")
def student(tiny_world: Path, program_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> distil_jax.Result:
    """A student of a teacher and texts in memory."""
    module, params = distil_jax.from_pretrained(tiny_world / "teacher")
    tokenizer = distil_jax.load_tokenizer(tiny_world / "tokenizer")
    texts, held_out = (
        (tiny_world / "text" / f"{name}.txt").read_text().splitlines() for name in ("train", "validation")
    )
    folder = tmp_path_factory.mktemp("api") / "student"
    return distil_jax.distill((module, params, tokenizer), texts, validation=held_out, folder=folder, **RUN)


def test_a_model_and_texts_in_memory_are_distilled_as_from_files(
    student: distil_jax.Result, tiny_world: Path, tmp_path: Path
) -> None:
    """The same configuration, read back from the run, gives the same parameters; the teacher's folder is the other."""
    config = config_from_toml((student.folder / "config.toml").read_text(), "config.toml")
    changes = {"run.output": str(tmp_path / "again"), "teacher.path": str(tiny_world / "teacher")}
    again = distill_config(with_overrides(config, changes))
    jax.tree.map(np.testing.assert_array_equal, student.params, jax.tree.map(np.asarray, again.state.params))
    assert student.metrics == again.evaluations[2]
    logits = student.module.apply({"params": student.params}, student.tokenizer(["the cat [MASK]"]))
    assert isinstance(logits, jax.Array) and bool(np.isfinite(np.asarray(logits)).all())


def test_the_same_call_continues_and_another_is_refused(student: distil_jax.Result, tiny_world: Path) -> None:
    corpus = student.folder / "inputs" / "corpus"
    with pytest.raises(UserError, match="holds another run"):
        distil_jax.distill(tiny_world / "teacher", corpus, folder=student.folder, run={"seed": 3}, **RUN)


def test_pretraining_from_rows_of_any_kind(tiny_world: Path, program_cache: Path, tmp_path: Path) -> None:
    rows = [{"text": line} for line in (tiny_world / "text" / "train.txt").read_text().splitlines()]
    sizes = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "max_position_embeddings": 32}
    found = distil_jax.pretrain(rows, tokenizer=tiny_world / "tokenizer", folder=tmp_path / "run", model=sizes, **RUN)
    assert found.module.config.num_layers == 1
    assert found.metrics == {}
    with pytest.raises(UserError, match="tokenizer"):
        distil_jax.pretrain(rows, folder=tmp_path / "other")


def test_rows_in_memory_are_learned(learner: str, task_files: Any, program_cache: Path, tmp_path: Path) -> None:
    pandas, datasets = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    path = task_files["classification"]["task.train"]
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    columns = {name: [row[name] for row in rows] for name in ("text", "label")}
    settings = {name: RUN[name] for name in ("training", "parallel", "logging")}
    forms = {"file": path, "list": rows, "dict": columns, "pandas": pandas.DataFrame(columns)}
    forms["datasets"] = datasets.Dataset.from_dict(columns)
    found = {
        name: distil_jax.finetune(learner, data, folder=tmp_path / name, task={"max_length": 24}, **settings)
        for name, data in forms.items()
    }
    first = found["file"]
    for one in found.values():
        assert one.metrics == first.metrics
        jax.tree.map(np.testing.assert_array_equal, one.params, first.params)
    predicted = distil_jax.load_predictor(first)(["warm old big", "cold blue"])
    assert [set(one["scores"]) for one in predicted] == [{"good", "bad"}] * 2


def test_a_file_that_is_not_there_is_named_as_one(tiny_world: Path) -> None:
    for name in ("gone.csv", "data/gone"):
        with pytest.raises(UserError, match=f"{name}: no such file"):
            distil_jax.finetune(tiny_world / "teacher", name)


def test_settings_that_follow_from_arguments_are_refused(tiny_world: Path) -> None:
    with pytest.raises(UserError, match=r"run\.output"):
        distil_jax.distill(tiny_world / "teacher", tiny_world / "corpus", **{"run.output": "here"})


@pytest.mark.slow
def test_the_loop_of_the_guide_trains(tiny_world: Path, tmp_path: Path) -> None:
    """The block of docs/python.md, with the tiny teacher: it runs, the loss falls, and what it saves is read back."""
    guide = (Path(__file__).resolve().parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    block = guide.partition("## A loop of your own")[2].partition("```python\n")[2].partition("```")[0]
    block = block.replace("google-bert/bert-base-uncased", str(tiny_world / "teacher"))
    names: dict[str, Any] = {}
    exec(block.replace("models/own", str(tmp_path / "own")), names)
    start = distil_jax.student_params(
        names["teacher_params"], names["teacher"].config, names["student"].config, names["layers"]
    )
    key = jax.random.key(0)
    assert names["loss"](names["params"], names["inputs"], key) < names["loss"](start, names["inputs"], key)
    _, saved = distil_jax.from_pretrained(tmp_path / "own")
    jax.tree.map(np.testing.assert_array_equal, saved, jax.tree.map(np.asarray, names["params"]))


def test_a_kind_that_there_is_not_is_named(tiny_inputs: Path) -> None:
    with pytest.raises(UserError, match="kind = 'sequence'.*classification"):
        distil_jax.finetune(tiny_inputs / "teacher", [{"text": "a", "label": "b"}], kind="sequence")


def test_a_setting_without_its_section_has_all_that_it_may_mean(tiny_inputs: Path) -> None:
    with pytest.raises(UserError, match=r"'training.epochs' or|or 'training.epochs'"):
        distil_jax.finetune(tiny_inputs / "teacher", [{"text": "a", "label": "b"}], epochs=1)
