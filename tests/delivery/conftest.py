"""Tiny models with task heads, and a fine-tuning run of a few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

# kind, labels, number of outputs, problem, by what tests call it
HEADS: dict[str, tuple[Any, tuple[str, ...], int, Any]] = {
    "classes": ("sequence", ("bad", "fair", "good"), 3, "single_label_classification"),
    "sets": ("sequence", ("art", "news", "sport"), 3, "multi_label_classification"),
    "score": ("sequence", (), 1, "regression"),
    "tags": ("token", ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"), 5, ""),
    "answers": ("question", (), 2, ""),
    "choices": ("choice", (), 1, ""),
}


@pytest.fixture(scope="session")
def task_folder(
    tiny_inputs: Path, program_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """A function (name in HEADS, family) -> folder of a random model with that head, the same one every time."""
    from distil_jax.hf import load_tokenizer, save_pretrained
    from distil_jax.models import EncoderConfig, TaskHead, TaskModel

    tokenizer, made = load_tokenizer(tiny_inputs / "tokenizer"), {}

    def make(name: str, family: Any = "bert") -> Path:
        if (name, family) not in made:
            kind, labels, outputs, problem = HEADS[name]
            dense = family == "distilbert" and kind in ("sequence", "choice")
            head = TaskHead(kind, labels=labels, num_outputs=outputs, dense=dense, problem=problem)
            types = 2 if family == "bert" else 0
            pooler = head.needs_pooler
            config = EncoderConfig(family, tokenizer.vocab_size, 16, 2, 2, 24, 64, type_vocab_size=types, pooler=pooler)
            model, ids = TaskModel(config, head), np.zeros((1, 4), np.int32)
            shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), ids)["params"])
            random = np.random.default_rng(3)

            def drawn(path: Any, x: Any) -> np.ndarray:
                # Large, so that texts come out far apart; by NumPy, so that nothing has to be compiled.
                values = 1.0 * (path[-1].key == "scale") + 0.5 * random.standard_normal(x.shape)
                return values.astype(np.float32)

            params = jax.tree_util.tree_map_with_path(drawn, shapes)
            made[name, family] = tmp_path_factory.mktemp(name) / "model"
            save_pretrained(made[name, family], config, params, head=head, tokenizer=tokenizer)
        return made[name, family]

    return make


@pytest.fixture(scope="session")
def task_run(tiny_world: Path, program_cache: Path) -> Path:
    """The folder of a finished fine-tuning of pairs into two classes, with a checkpoint of each of its four steps."""
    from distil_jax.config import load_config
    from distil_jax.tasks.finetune import finetune

    words = ["cat", "dog", "sat", "ran", "home", "red", "fish", "bird", "sky", "moon"]
    rows = [
        f"the {words[i % 10]} {words[i % 7]},a {words[(3 * i) % 10]} and,{'same' if i % 3 else 'other'}"
        for i in range(24)
    ]
    for name, part in (("train", rows[:16]), ("validation", rows[16:])):
        lines = ["first,second,label", *part]
        (tiny_world / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    output = tiny_world / "runs" / "task"
    overrides = {
        "run.output": str(output),
        "model.initial": str(tiny_world / "teacher"),
        "task.name": "classification",
        "task.train": str(tiny_world / "train.csv"),
        "task.validation": str(tiny_world / "validation.csv"),
        "task.text": "first",
        "task.pair": "second",
        "task.max_length": 24,
        "training.steps": 4,
        "training.batch_size": 8,
        "training.micro_batch_size": 8,
        "parallel.devices": 1,
        "checkpoint.keep": 10,
        "checkpoint.every_steps": 1,
        "evaluation.every_steps": 1,
        "optimizer.learning_rate": 1e-2,
        "logging.tensorboard": False,
        "logging.progress": "none",
    }
    finetune(load_config("finetune", overrides))
    return output
