"""Examples of a task for measuring: the real ones where they are on this machine, else made-up ones like them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distil_jax.config import Config
from distil_jax.hf import Tokenizer, task_head
from distil_jax.models import EncoderConfig, TaskModel
from distil_jax.tasks.data.load import load_task
from distil_jax.tasks.encode import Encoded, encode_examples
from distil_jax.tasks.examples import (
    Answer,
    ChoiceExample,
    Example,
    QuestionExample,
    SequenceExample,
    TaskData,
    TaskSpec,
    TokenExample,
)
from distil_jax.tasks.finetune import Learner
from distil_jax.tasks.registry import task_spec

_EXAMPLES = 512
_LOG_WORDS = (3.0, 0.6)  # of the words of a sentence in GLUE: mean and deviation of their logarithm
_CONTEXT_WORDS = 150  # of a paragraph in SQuAD
_CHOICES = 4


@dataclasses.dataclass(frozen=True)
class TaskParts:
    """A task's data, its encoded training set, and the tokenizer."""

    data: TaskData
    train: Encoded
    tokenizer: Tokenizer

    def random_learner(
        self, encoder: EncoderConfig, *, with_teacher: bool, draw: Callable[[Any, float], dict[str, Any]]
    ) -> Learner:
        """A model with random weights and a head for the task, with a teacher of the same sizes if wanted.

        `draw(module, spread)` makes parameters.
        """
        spec = self.data.spec
        problem = spec.problem if spec.kind == "sequence" else ""
        head = task_head(encoder, None, spec.kind, self.data.labels, problem)
        encoder = dataclasses.replace(encoder, pooler=head.needs_pooler)
        params = draw(TaskModel(encoder, head), encoder.initializer_range)
        teacher = (encoder, head, params) if with_teacher else None
        return Learner(encoder, head, params, self.tokenizer, teacher)


def task_parts(config: Config, tokenizer: Tokenizer, notes: list[str]) -> TaskParts:
    """The task of `config`: from task.source or task.train where that is on this machine, else made up.

    Adds to `notes` what was made up.
    """
    spec, settings = task_spec(config.task.name), config.task
    if any(place and Path(place).exists() for place in (settings.source, settings.train)):
        data = load_task(settings, config.run.seed)
    else:
        data = made_up_task(spec, tokenizer)
        notes.append(f"{len(data.train)} made-up examples of a task like {spec.title}")
    train = encode_examples(tokenizer, data.spec.kind, data.train, settings, training=True)
    return TaskParts(data, train, tokenizer)


def made_up_task(spec: TaskSpec, tokenizer: Tokenizer, examples: int = _EXAMPLES) -> TaskData:
    """Examples with the shape of the task's, of words that are a token each."""
    words = [token for token in tokenizer.tokens() if token.isalnum()]
    generator = np.random.default_rng(0)
    labels = spec.labels or (("no", "yes") if spec.problem.endswith("classification") or spec.kind == "token" else ())
    pairs = spec.name in ("mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax")

    def text() -> str:
        return _text(words, max(3, int(np.exp(generator.normal(*_LOG_WORDS)))), generator)

    def example(number: int) -> Example:
        if spec.kind == "token":
            found = tuple(text().split())
            return TokenExample(str(number), found, tuple(generator.integers(0, len(labels), len(found)).tolist()))
        if spec.kind == "question":
            context = _text(words, _CONTEXT_WORDS, generator)
            return QuestionExample(str(number), text(), context, (Answer(context.split()[0], 0),))
        if spec.kind == "choice":
            return ChoiceExample(str(number), text(), tuple(text() for _ in range(_CHOICES)), number % _CHOICES)
        return SequenceExample(str(number), text(), text() if pairs else None, _label(spec, labels, number))

    return TaskData(spec, labels, [example(number) for number in range(examples)], {}, {}, "", ())


def _text(words: list[str], count: int, generator: np.random.Generator) -> str:
    return " ".join(words[i] for i in generator.integers(0, len(words), count))


def _label(spec: TaskSpec, labels: tuple[str, ...], number: int) -> int | float | tuple[int, ...]:
    if spec.problem == "regression":
        return float(number % 6)
    if spec.problem == "multi_label_classification":
        return tuple((number >> bit) & 1 for bit in range(len(labels)))
    return number % len(labels)
