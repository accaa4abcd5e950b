"""The models of a fine-tuning: what the user hears of their labels, and which of their parameters learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from distil_jax.config import Config
from distil_jax.errors import UserError
from distil_jax.hf import add_task_head, load_tokenizer, read_pretrained, save_pretrained, task_head
from distil_jax.training.finetune import RESULT_FILE, finetune

TaskConfig = Callable[..., Config]
UNNAMED = "its labels have no names; taken in the order bad, good"


@pytest.fixture(scope="module")
def classifier(learner: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], str]:
    """A function: labels -> folder of a model with a head for two classes, () leaving them without names."""

    def make(labels: tuple[str, ...]) -> str:
        config, params, *_ = read_pretrained(learner)
        head = task_head(config, None, "sequence", labels, num_outputs=len(labels) or 2)
        config, params = add_task_head(config, params, head)
        folder = tmp_path_factory.mktemp("classifier") / "model"
        save_pretrained(folder, config, params, tokenizer=load_tokenizer(learner), head=head)
        return str(folder)

    return make


def test_the_order_of_labels_without_names_is_said(
    task_config: TaskConfig, classifier: Callable[..., str], tmp_path: Path
) -> None:
    folder = classifier(())
    assert json.loads((Path(folder) / "config.json").read_text())["id2label"] == {"0": "LABEL_0", "1": "LABEL_1"}
    changes = {"model.initial": folder, "teacher.path": folder, "training.steps": 1}
    found = finetune(task_config("classification", tmp_path / "run", changes))
    expected = [f"model.initial = {folder}: {UNNAMED}", f"teacher.path = {folder}: {UNNAMED}"]
    assert [note for note in found.notes if "no names" in note] == expected
    kept = json.loads((tmp_path / "run" / RESULT_FILE).read_text())["notes"]
    assert [note for note in kept if "no names" in note] == expected


def test_nothing_is_said_of_labels_with_names_and_of_a_new_head(
    task_config: TaskConfig, classifier: Callable[..., str], tmp_path: Path
) -> None:
    changes = {"teacher.path": classifier(("good", "bad")), "training.steps": 1}
    found = finetune(task_config("classification", tmp_path / "run", changes))
    assert not [note for note in found.notes if "no names" in note]


def test_the_encoder_can_be_frozen(task_config: TaskConfig, learner: str, tmp_path: Path) -> None:
    changes = {"model.freeze_encoder": True, "training.epochs": 1}
    found = finetune(task_config("classification", tmp_path / "run", changes))
    assert any(note.startswith(f"model.freeze_encoder: {learner} has no pooler") for note in found.notes)
    state: Any = jax.tree.map(np.asarray, found.result.state)
    kept = {name: value for name, value in state.params["encoder"].items() if name != "pooler"}
    given = read_pretrained(learner)[1]["encoder"]
    jax.tree.map(np.testing.assert_array_equal, kept, {name: given[name] for name in kept})
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert len(moments) == 2 * len(jax.tree.leaves(state.params["task_head"]))
    assert all(np.any(moment) for moment in moments)


def test_nothing_is_said_of_a_pooler_that_is_there(
    task_config: TaskConfig, learner: str, classifier: Callable[..., str], tmp_path: Path
) -> None:
    changes = {"model.freeze_encoder": True, "training.steps": 1, "model.initial": classifier(("red", "green", "blue"))}
    found = finetune(task_config("classification", tmp_path / "run", changes))
    assert not [note for note in found.notes if "pooler" in note]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evaluation.rows": 5}, "^evaluation.rows: finetune measures whole validation sets"),
        ({"evaluation.seed": 1}, "^evaluation.seed: finetune"),
        ({"evaluation.rows": 5, "evaluation.seed": 1}, "^evaluation.rows and evaluation.seed: finetune"),
    ],
)
def test_settings_of_masked_evaluation_are_refused(
    task_config: TaskConfig, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        finetune(task_config("classification", tmp_path / "run", changes))
    assert not (tmp_path / "run").exists()
