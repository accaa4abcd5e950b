"""Fine-tuned runs: the best checkpoint is what is exported, and transformers computes the same with it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from distil_jax.config import Config, with_overrides
from distil_jax.errors import UserError
from distil_jax.export import export, predict, read_run
from distil_jax.export.card import model_card
from distil_jax.export.checkpoint import Trained
from distil_jax.export.source import source_of_run
from distil_jax.export.write import write_model
from distil_jax.hf import load_tokenizer, named_kind, read_json, read_task_model
from distil_jax.models import EncoderConfig, TaskHead

ENCODER = EncoderConfig("distilbert", 1234, 48, 3, 4, 96, 64)
CLASSES = TaskHead("sequence", labels=("no", "yes"), num_outputs=2, problem="single_label_classification")


@pytest.fixture
def copied_run(task_run: Path, tmp_path: Path) -> Path:
    """A copy of `task_run`, of the four steps of which a test may change the measures."""
    return shutil.copytree(task_run, tmp_path / "run")


def with_best(folder: Path, best: int, last: int = 4) -> None:
    """Write rows of held-out measures by which step `best` is the best of 1 to `last`."""
    rows = (
        {"step": step, "kind": "validation", "metrics": {"score": float(step == best)}} for step in range(1, last + 1)
    )
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.mark.parametrize("best", [1, 2, 3, 4])
def test_the_best_step_is_the_result_and_not_the_newest(best: int, copied_run: Path) -> None:
    with_best(copied_run, best)
    trained = read_run(copied_run)
    assert trained.step == best
    assert read_run(copied_run, 2).step == 2
    assert set(trained.metadata["evaluations"]) == {1, 2, 3, 4}


def test_measures_after_the_newest_checkpoint_do_not_count(copied_run: Path) -> None:
    """A run that was killed between an evaluation and its checkpoint."""
    with_best(copied_run, 5, last=5)
    trained = read_run(copied_run)
    assert trained.step == 1, "the first of equals"
    assert set(trained.metadata["evaluations"]) == {1, 2, 3, 4}


def test_a_run_that_keeps_the_last_gives_the_newest(copied_run: Path) -> None:
    with_best(copied_run, 2)
    contents = json.loads((copied_run / "model.json").read_text()) | {"selection": ""}
    contents["sha256"] = hashlib.sha256(
        json.dumps({k: v for k, v in contents.items() if k != "sha256"}, sort_keys=True).encode()
    ).hexdigest()
    (copied_run / "model.json").write_text(json.dumps(contents))
    with pytest.raises(UserError, match=r"model\.json"):
        read_run(copied_run)
    for step in (copied_run / "checkpoints").iterdir():
        rename_model_file(step, contents["sha256"])
    assert read_run(copied_run).step == 4


def rename_model_file(checkpoint: Path, sha256: str) -> None:
    """Write another hash of model.json into a checkpoint, and the hash that follows from it."""
    metadata = json.loads((checkpoint / "metadata" / "metadata").read_text()) | {"model_file": sha256}
    (checkpoint / "metadata" / "metadata").write_text(json.dumps(metadata))
    hashes = json.loads((checkpoint / "hashes" / "metadata").read_text())
    hashes["metadata"]["metadata"] = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()
    (checkpoint / "hashes" / "metadata").write_text(json.dumps(hashes))


def test_the_checkpoint_is_restored_with_its_head(task_run: Path, tmp_path: Path) -> None:
    trained = export(task_run, tmp_path / "model", step=3).source
    assert trained.step == 3
    assert trained.head is not None
    assert trained.head.labels == ("other", "same")
    encoder, params, head, is_new_head, *_ = read_task_model(tmp_path / "model", "sequence")
    assert not is_new_head
    assert (encoder, head) == (trained.encoder, trained.head)
    np.testing.assert_array_equal(
        params["task_head"]["output"]["kernel"], trained.params["task_head"]["output"]["kernel"]
    )
    assert "step 3 of 4" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


def test_the_exported_run_is_a_pipeline(task_run: Path, tmp_path: Path) -> None:
    from transformers import pipeline

    export(task_run, tmp_path / "model")
    pairs = [("the cat ran", "a dog sat"), ("red fish", "the moon")]
    classifier: Any = pipeline("text-classification", str(tmp_path / "model"), device="cpu")
    expected = classifier([{"text": a, "text_pair": b} for a, b in pairs])
    found = list(predict(task_run, pairs))
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    np.testing.assert_allclose([one["score"] for one in found], [one["score"] for one in expected], atol=1e-5)


TASKS = {
    "sets": ("multilabel", "AutoModelForSequenceClassification"),
    "score": ("regression", "AutoModelForSequenceClassification"),
    "tags": ("tagging", "AutoModelForTokenClassification"),
    "answers": ("question", "AutoModelForQuestionAnswering"),
    "choices": ("choice", "AutoModelForMultipleChoice"),
}


@pytest.mark.parametrize("name", TASKS)
def test_every_kind_of_head_is_exported(task_folder: Callable[..., Path], tmp_path: Path, name: str) -> None:
    """From a checkpoint's contents to a folder that transformers' class of the task takes whole, and its own card."""
    import torch
    import transformers

    task, auto = TASKS[name]
    folder = task_folder(name)
    kind = named_kind(read_json(folder / "config.json"))
    assert kind is not None
    encoder, params, head, *_ = read_task_model(folder, kind)
    config = with_overrides(Config(), {"task.name": task, "task.train": "rows.csv", "run.output": "x"})
    metadata = {
        "description": {"stage": "finetune", "task": task, "initial": "models/small", "teacher": "", "examples": 1200},
        "steps": 20,
        "evaluations": {10: {"score": 0.5}},
    }
    trained = Trained(10, encoder, params, load_tokenizer(folder), config, metadata, head)
    write_model(source_of_run(trained, "model"), tmp_path / "model")
    model, loading = getattr(transformers, auto).from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(loading.values()), loading
    reference = getattr(transformers, auto).from_pretrained(folder)
    ids = torch.tensor([[2, 9, 10, 11, 3]])
    ids = ids[None] if name == "choices" else ids
    with torch.no_grad():
        actual, wanted_by_reference = model(ids), reference(ids)
    for key in ("logits", "start_logits"):
        if key in wanted_by_reference:
            np.testing.assert_array_equal(actual[key].numpy(), wanted_by_reference[key].numpy())
    settings = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert head is not None and (head.labels == () or tuple(settings["id2label"].values()) == head.labels)
    card = (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    assert "| score | 0.5000 |" in card
    snippet = card.split("```python\n")[1].split("```")[0].replace('"model"', repr(str(tmp_path / "model")))
    compile(snippet, "card", "exec")
    run_snippet(snippet)


def run_snippet(code: str) -> None:
    """What a reader of the card would run; it must print something."""
    printed: list[Any] = []
    exec(code, {"print": printed.append})
    assert len(printed) == 1


def card(head: TaskHead = CLASSES, changes: dict[str, Any] | None = None, **description: Any) -> str:
    config = with_overrides(
        Config(),
        {
            "run.seed": 3,
            "task.name": "sst2",
            "optimizer.learning_rate": 2e-5,
            "training.batch_size": 32,
            **(changes or {}),
        },
    )
    metadata = {
        "description": {
            "stage": "finetune",
            "initial": "models/small",
            "teacher": "",
            "examples": 67349,
            **description,
        },
        "steps": 300,
        "evaluations": {100: {"score": 0.9, "accuracy": 0.9}, 300: {"score": 0.8, "accuracy": 0.8}},
    }
    return model_card(config, ENCODER, metadata, 100, "small-sst2", head)


def test_the_card_says_what_was_done() -> None:
    text = card()
    for said in (
        "`small` fine-tuned on SST-2.",
        "67,349 training examples of up to 128 tokens",
        "step 100 of 300, 32 examples a step, peak learning rate 2e-05, seed 3",
        "2 labels: `no`, `yes`",
        "| accuracy | 0.9000 |",
        "loss: against the labels",
        'pipeline("text-classification", "small-sst2")',
    ):
        assert said in text, said
    assert "0.8000" not in text, "measures of another step"
    assert "teacher" not in text
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "datasets": ["nyu-mll/glue"],
        "tags": ["distil_jax"],
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": "small-sst2",
                "results": [
                    {
                        "task": {"type": "text-classification"},
                        "dataset": {"name": "SST-2", "type": "nyu-mll/glue", "split": "validation"},
                        "metrics": [{"type": "accuracy", "value": 0.9}],
                    }
                ],
            }
        ],
    }
    assert body.startswith("# small-sst2\n")


def test_the_card_of_a_student_names_its_teacher_and_the_weights() -> None:
    changes = {"teacher.path": "models/big", "finetune.task": 0.3, "finetune.kl": 0.7}
    text = card(changes=changes, teacher="models/big")
    assert "with the fine-tuned model `big` as teacher" in text
    assert "loss: 0.3 task + 0.7 kl, temperature 2" in text
    assert "knowledge-distillation" in text


def test_own_data_are_no_known_dataset() -> None:
    text = card(changes={"task.name": "classification", "task.train": "reviews.csv", "task.pair": "title"})
    assert "datasets" not in text
    assert "- data: `reviews.csv`;" in text
    assert "text_pair" in text
