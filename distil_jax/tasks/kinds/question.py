"""Questions about a context, answered by a span of it or, as in SQuAD 2.0, by none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from distil_jax.config import TaskSettings
from distil_jax.data.rows import BadRowError
from distil_jax.errors import UserError
from distil_jax.hf import Tokenizer
from distil_jax.tasks.batches import TaskBatch, row_labels
from distil_jax.tasks.data.classes import no_labels
from distil_jax.tasks.data.columns import Columns
from distil_jax.tasks.data.convert import ExampleRules, TakenColumns, checked_text, text_of
from distil_jax.tasks.data.labels import is_blank, list_in_text, number_of
from distil_jax.tasks.encoded import Encoded, assembled
from distil_jax.tasks.examples import Answer, QuestionExample, TaskData
from distil_jax.tasks.kinds.kind import (
    Predicted,
    Prediction,
    PredictionOptions,
    TaskKind,
    entropy,
    plain_score,
    rounded,
    teacher_kl,
)
from distil_jax.tasks.metrics.squad import squad_measures
from distil_jax.tasks.spans import AnswerPrediction, QuestionWindows, predict_answers, question_windows

if TYPE_CHECKING:
    from jax import Array

    from distil_jax.models import TaskHead

_Predicted = Predicted[QuestionExample]


def _to_example(identity: str, values: Mapping[str, Any], taken: TakenColumns, rules: ExampleRules) -> QuestionExample:
    question = text_of(values, taken.text, blank=rules.blank_text)
    context = text_of(values, taken.pair)
    given = values.get(taken.label) if taken.label else None
    if given is None and rules.role != "test" and not values.get("is_impossible"):
        raise BadRowError(f"no answers in column {taken.label!r} (an empty list says that there is none)")
    if given is None and rules.role == "test":
        return QuestionExample(identity, question, context)
    answers = tuple(_answer(item, context) for item in _answer_items(given) if not _is_no_answer(item))
    if not answers and not rules.unanswerable:
        raise BadRowError("no answer; questions without one belong to the task squad_v2")
    return QuestionExample(identity, question, context, answers)


def _answer_items(given: Any) -> list[Any]:
    """Answers as a list of {text, answer_start}, from that or from {text: [...], answer_start: [...]}."""
    if is_blank(given):
        return []
    if isinstance(given, str) and given.lstrip().startswith(("[", "{")):
        given = list_in_text(given.strip(), "the column of answers")
    if isinstance(given, list):
        return given
    if not isinstance(given, dict) or not {"text", "answer_start"} <= given.keys():
        raise BadRowError("answers are neither a list of {text, answer_start} nor {text: [...], answer_start: [...]}")
    texts, starts = given["text"], given["answer_start"]
    if not isinstance(texts, list) or not isinstance(starts, list):
        return [given]
    if len(texts) != len(starts) and any(texts):
        raise BadRowError(f"{len(texts)} texts of answers but {len(starts)} starts")
    return [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=False)]


def _is_no_answer(item: Any) -> bool:
    """Whether an answer says by its empty text that there is none."""
    return isinstance(item, Mapping) and "text" in item and is_blank(item["text"])


def _answer(item: Any, context: str) -> Answer:
    if not isinstance(item, dict) or not {"text", "answer_start"} <= item.keys():
        raise BadRowError("an answer without 'text' and 'answer_start'")
    text, written = checked_text(item["text"], "the answer"), item["answer_start"]
    number = None if isinstance(written, bool) else number_of(str(written).strip())
    if number is None or number != int(number):
        raise BadRowError(f"answer_start {written!r} is not a whole number")
    start = int(number)
    if start < 0 or context[start : start + len(text)] != text:
        at = context.find(text)
        hint = f"it is at {at}" if at >= 0 else "the context does not hold it"
        raise BadRowError(f"answer {text[:60]!r} is not in the context at answer_start = {start} ({hint})")
    return Answer(text, start)


def _encode(
    tokenizer: Tokenizer, examples: Sequence[QuestionExample], settings: TaskSettings, training: bool
) -> Encoded:
    """In training, windows of questions whose answer no token covers are left out."""
    found = question_windows(
        tokenizer,
        examples,
        max_length=QUESTION.row_length(settings),
        doc_stride=settings.doc_stride,
        max_question_length=settings.max_question_length,
    )
    windows = [window for window in found.windows if window.start >= 0] if training else found.windows
    rows = [(window.ids, window.token_types) for window in windows]
    known = all(window.start >= 0 for window in windows)
    labels = [np.array([window.start, window.end], np.int32) for window in windows] if known else None
    return assembled(tokenizer, rows, labels, _notes(found, settings), parts=list(windows))


def _notes(found: QuestionWindows, settings: TaskSettings) -> tuple[str, ...]:
    counts = {
        f"questions cut to {settings.max_question_length} tokens": found.cut_questions,
        "answers begin or end inside a token": found.inexact_answers,
        "answers have no token or are not at their place in the context": found.lost_answers,
        "answers are in no window whole": found.split_answers,
    }
    return tuple(f"{count:,} {what}" for what, count in counts.items() if count)


def _loss(logits: Array, batch: TaskBatch) -> Array:
    """The mean over start and end; the softmax is over all positions of the padded row, as in transformers."""
    ends = [entropy(logits[..., end], batch.labels[:, end], batch.weights) for end in range(2)]
    return (ends[0] + ends[1]) / 2


def _distillation_loss(student: Array, teacher: Array, batch: TaskBatch, temperature: float | Array) -> Array:
    ends = [teacher_kl(student[..., end], teacher[..., end], batch.shares, temperature) for end in range(2)]
    return (ends[0] + ends[1]) / 2


def _answers(predicted: _Predicted, options: PredictionOptions) -> list[AnswerPrediction]:
    settings = predicted.settings
    return predict_answers(
        predicted.examples,
        predicted.encoded.parts,
        [row[:, 0] for row in predicted.logits],
        [row[:, 1] for row in predicted.logits],
        n_best=max(settings.n_best, options.n_best),
        max_answer_length=settings.max_answer_length,
        null_threshold=options.null_threshold,
        version_2=options.no_answer,
    )


def _decode(predicted: _Predicted, head: TaskHead, options: PredictionOptions) -> list[Prediction]:
    most = options.n_best
    found: list[Prediction] = []
    for one in _answers(predicted, options):
        prediction: Prediction = {
            "answer": one.answer.text,
            "start": one.answer.start,
            "score": float(rounded(one.answer.probability)),
            "no_answer_score": plain_score(one.no_answer_score),
        }
        if most:
            prediction["n_best"] = [
                {"answer": each.text, "start": each.start, "score": float(rounded(each.probability))}
                for each in one.n_best[:most]
            ]
        found.append(prediction)
    return found


def _measure(data: TaskData, predicted: _Predicted) -> dict[str, float]:
    two, threshold = data.no_answer, predicted.settings.null_threshold
    answers = _answers(predicted, PredictionOptions(no_answer=two, null_threshold=threshold))
    if not two:
        texts = {answer.id: answer.text for answer in answers}
        found = squad_measures(texts, predicted.examples, version_2=False)
    else:
        spans = {answer.id: answer.span.text for answer in answers}
        scores = {answer.id: answer.no_answer_score for answer in answers}
        found = squad_measures(spans, predicted.examples, scores, version_2=True, threshold=threshold)
    return {name: value for name, value in found.items() if not name.endswith("total")}  # no shares


def _check(settings: TaskSettings, length: int) -> None:
    space = length - settings.max_question_length - 3
    if settings.doc_stride > max(space, 0):
        raise UserError(
            f"task.doc_stride = {settings.doc_stride}: beside a question of task.max_question_length = "
            f"{settings.max_question_length} a window of task.max_length = {length} holds only {space} tokens of the "
            "context; lower doc_stride or raise max_length"
        )


def _synthetic(identity: str, text: Callable[..., str], classes: int, pairs: bool) -> QuestionExample:
    del classes, pairs
    context = text(150)  # as of a paragraph in SQuAD
    return QuestionExample(identity, text(), context, (Answer(context.split()[0], 0),))


QUESTION = TaskKind(
    name="question",
    head="question",
    reads="answers",
    example=QuestionExample,
    columns=Columns(("question",), ("context",), ("answers",), ("id",)),
    flags=("--question", "--context"),
    row="a question and its context",
    bare=lambda row, columns: (
        {columns.text[0]: row[0], columns.pair[0]: row[1]} if isinstance(row, list | tuple) and len(row) == 2 else None
    ),
    to_example=_to_example,
    decide_labels=no_labels,
    rows=_encode,
    labels=row_labels,
    loss=_loss,
    distillation_loss=_distillation_loss,
    decode=_decode,
    measure=_measure,
    label_of=lambda example: example.answers,
    counted=lambda answers: ("answered" if answers else "without an answer",),
    characters=lambda example: len(example.question) + len(example.context),
    synthetic=_synthetic,
    snippet=lambda model, pairs: [
        "import torch",
        "from transformers import AutoModelForQuestionAnswering, AutoTokenizer",
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({model})",
        f"model = AutoModelForQuestionAnswering.from_pretrained({model})",
        'inputs = tokenizer("A question?", "A context that answers it.", return_tensors="pt")',
        "with torch.no_grad():",
        "    found = model(**inputs)",
        "start, end = found.start_logits.argmax(), found.end_logits.argmax()",
        'print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))',
    ],
    pipeline="question-answering",
    metrics=("exact_match", "squad_f1"),
    max_length=384,
    longest=384,
    unique_ids=True,
    together=lambda example: example.context,
    may_name_labels=False,
    settings=("doc_stride", "max_question_length", "max_answer_length", "n_best", "null_threshold"),
    may_lack_answer=True,
    no_answer=lambda examples: any(example.answers == () for example in examples),
    check=_check,
)
