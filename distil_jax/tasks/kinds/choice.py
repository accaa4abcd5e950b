"""A prompt and several endings, of which one is right."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from distil_jax.config import TaskSettings
from distil_jax.hf import Tokenizer
from distil_jax.tasks.batches import TaskBatch, row_labels
from distil_jax.tasks.data.classes import decide_choices
from distil_jax.tasks.data.columns import Columns
from distil_jax.tasks.data.convert import ExampleRules, TakenColumns, checked_text, endings_in, label_of, text_of
from distil_jax.tasks.encoded import NO_TOKEN, Encoded, assembled, cut_note, label_arrays, pieces
from distil_jax.tasks.examples import ChoiceExample, TaskData
from distil_jax.tasks.kinds.kind import Predicted, Prediction, PredictionOptions, TaskKind, entropy, softmax, teacher_kl
from distil_jax.tasks.metrics.scores import measure

_NEVER = -1e30  # logit of an ending that is not there; finite, so that 0 times it is 0

if TYPE_CHECKING:
    from jax import Array

    from distil_jax.models import TaskHead

_Predicted = Predicted[ChoiceExample]


def _to_example(identity: str, values: Mapping[str, Any], taken: TakenColumns, rules: ExampleRules) -> ChoiceExample:
    prompt = text_of(values, taken.text)
    endings = endings_in(values, taken)
    value = label_of(values, taken, rules)
    label = None if value is None else rules.choices.number(value, endings)
    texts = [checked_text(ending, f"ending {number}", blank=True) for number, ending in enumerate(endings.texts)]
    if taken.pair:
        start = text_of(values, taken.pair).strip()
        texts = [f"{start} {ending}" if ending else start for ending in texts]
    return ChoiceExample(identity, prompt, tuple(texts), label)


def _encode(tokenizer: Tokenizer, examples: Sequence[ChoiceExample], settings: TaskSettings, training: bool) -> Encoded:
    del training
    prompts = pieces(tokenizer, (example.prompt for example in examples))
    endings = iter(pieces(tokenizer, itertools.chain.from_iterable(example.endings for example in examples)))
    rows, cut, limit = [], 0, CHOICE.row_length(settings)
    for example, prompt in zip(examples, prompts, strict=True):
        parts = [tokenizer.fit(prompt, next(endings), limit) for _ in example.endings]
        length = max(len(ids) for ids, _, _ in parts)
        ids = [row + [NO_TOKEN] * (length - len(row)) for row, _, _ in parts]
        types = [row + [0] * (length - len(row)) for _, row, _ in parts]
        rows.append((ids, types))
        cut += any(shortened for _, _, shortened in parts)
    most = max((len(example.endings) for example in examples), default=0)
    labels = label_arrays([example.label for example in examples])
    return assembled(tokenizer, rows, labels, cut_note(cut, limit), choices=most)


def _real(logits: Array, batch: TaskBatch) -> Array:
    """Logits [B, C] with those of endings that an example does not have far below all others."""
    import jax.numpy as jnp

    return jnp.where(batch.token_share > 0, logits, _NEVER)


def _distillation_loss(student: Array, teacher: Array, batch: TaskBatch, temperature: float | Array) -> Array:
    return teacher_kl(_real(student, batch), _real(teacher, batch), batch.shares, temperature)


def _decode(predicted: _Predicted, head: TaskHead, options: PredictionOptions) -> list[Prediction]:
    found: list[Prediction] = []
    for logits, example in zip(predicted.logits, predicted.examples, strict=True):
        scores = softmax(logits.astype(np.float64)).tolist()
        place = scores.index(max(scores))
        found.append({"choice": place, "ending": example.endings[place], "score": scores[place], "scores": scores})
    return found


def _measure(data: TaskData, predicted: _Predicted) -> dict[str, float]:
    chosen = np.array([row.argmax() for row in predicted.logits])
    return measure(data.spec.metrics, chosen, np.stack(predicted.encoded.labels or []))


CHOICE = TaskKind(
    name="choice",
    head="choice",
    reads="choices",
    example=ChoiceExample,
    columns=Columns(("text", "prompt"), ("pair", "text_pair"), id=("id",), endings=(("endings",),)),
    flags=("--text", "--endings"),
    row="a text and its endings",
    bare=lambda row, columns: None,
    to_example=_to_example,
    decide_labels=decide_choices,
    rows=_encode,
    labels=row_labels,
    loss=lambda logits, batch: entropy(_real(logits, batch), batch.labels, batch.weights),
    distillation_loss=_distillation_loss,
    decode=_decode,
    measure=_measure,
    label_of=lambda example: example.label,
    characters=lambda example: len(example.endings) * len(example.prompt) + sum(map(len, example.endings)),
    synthetic=lambda name, text, classes, pairs: ChoiceExample(
        name, text(), tuple(text() for _ in range(4)), int(name) % 4
    ),
    snippet=lambda model, pairs: [
        "import torch",
        "from transformers import AutoModelForMultipleChoice, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({model})",
        f"model = AutoModelForMultipleChoice.from_pretrained({model})",
        'endings = ["one ending.", "another ending."]',
        'inputs = tokenizer(["A prompt"] * len(endings), endings, padding=True, return_tensors="pt")',
        "with torch.no_grad():",
        "    scores = model(**{key: values[None] for key, values in inputs.items()}).logits",
        "print(endings[scores.argmax()])",
    ],
    pipeline="multiple-choice",
    metrics=("accuracy",),
    optional_pair=True,
)
