"""Tiny tasks of every kind, in files of our own words, and runs on them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distil_jax.config import Config, load_config, with_overrides
from distil_jax.hf import load_tokenizer, save_pretrained
from distil_jax.models import Encoder, EncoderConfig

GOOD, BAD = ("warm", "old", "big", "green"), ("cold", "blue", "red", "dark")
WORDS = ("the", "cat", "dog", "house", "tree", "sings", "runs", "near", "under", "river", "night")
RUN = {
    "training.batch_size": 8,
    "training.micro_batch_size": 8,
    "training.epochs": 2,
    "parallel.devices": 1,
    "evaluation.batch_size": 8,
    "logging.every_steps": 1,
    "logging.tensorboard": False,
    "logging.progress": "none",
    "optimizer.learning_rate": 1e-2,
    "task.max_length": 24,
}


def _sentence(chance: random.Random, kind: str) -> str:
    words = chance.choices(WORDS, k=chance.randint(0, 4)) + chance.choices(GOOD if kind == "good" else BAD, k=4)
    return " ".join(chance.sample(words, len(words)))


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def task_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Settings [task] of one tiny task a kind, by its name."""
    folder, chance = tmp_path_factory.mktemp("tasks"), random.Random(1)
    kinds = [chance.choice(("good", "bad")) for _ in range(40)]
    texts = [{"text": _sentence(chance, kind), "label": kind} for kind in kinds]
    scores = [{"text": row["text"], "label": 0.5 * len(row["text"].split())} for row in texts]
    sets = [{"text": row["text"], "label": [row["label"]]} for row in texts]
    tags = [
        {"words": row["text"].split(), "tags": ["B-X" if word in GOOD + BAD else "O" for word in row["text"].split()]}
        for row in texts
    ]
    questions = []
    for number in range(16):
        words = chance.choices(WORDS, k=14)
        place = len(" ".join(words[:5])) + 1
        answer = {"text": [words[5]], "answer_start": [place]}
        questions.append({"id": str(number), "question": "the cat", "context": " ".join(words), "answers": answer})
    choices = [
        {"text": _sentence(chance, "good"), "one": "the tree", "two": "a river runs", "label": chance.randint(0, 1)}
        for _ in range(16)
    ]
    files = {
        "classification": _jsonl(folder / "classes.jsonl", texts),
        "regression": _jsonl(folder / "scores.jsonl", scores),
        "multilabel": _jsonl(folder / "sets.jsonl", sets),
        "tagging": _jsonl(folder / "tags.jsonl", tags),
        "question": _jsonl(folder / "questions.jsonl", questions),
        "choice": _jsonl(folder / "choices.jsonl", choices),
    }
    more: dict[str, dict[str, Any]] = {
        "question": {"task.doc_stride": 4, "task.max_question_length": 4, "task.max_length": 16},
        "choice": {"task.endings": ["one", "two"]},
        "multilabel": {"task.labels": ["good", "bad"]},
    }
    return {name: {"task.name": name, "task.train": path, **more.get(name, {})} for name, path in files.items()}


@pytest.fixture(scope="session")
def learner(tiny_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a BERT encoder of one layer with weights as before training, which learn easily."""
    tokenizer = load_tokenizer(tiny_inputs / "tokenizer")
    config = EncoderConfig(
        "bert", tokenizer.vocab_size, 16, 1, 2, 32, 32, type_vocab_size=2, initializer_range=0.1, hidden_dropout=0.0
    )
    init = jax.jit(lambda: Encoder(config).init(jax.random.key(3), jnp.zeros((1, 4), jnp.int32))["params"])
    folder = tmp_path_factory.mktemp("learner") / "model"
    save_pretrained(folder, config, jax.tree.map(np.asarray, init()), tokenizer=tokenizer)
    return str(folder)


@pytest.fixture(scope="session")
def task_config(
    task_files: Mapping[str, Mapping[str, Any]], learner: str, program_cache: Path
) -> Callable[..., Config]:
    """A function (task, output, {"section.key": value}) -> configuration of a run of seconds."""

    def make(task: str, output: Path, changes: Mapping[str, Any] | None = None) -> Config:
        settings = {**RUN, **task_files[task], "model.initial": learner, "run.output": str(output)}
        return with_overrides(load_config("finetune"), {**settings, **(changes or {})})

    return make
