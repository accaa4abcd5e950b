"""Questions as token windows for a model, and its start and end logits as answers: the rules of BERT's SQuAD runs.

A context that is too long goes to the model in windows that overlap (Devlin et al. 2018, `run_squad.py`): each holds
[CLS] question [SEP] a stretch of context [SEP]. A token that several windows show is predicted by the one that shows
most of its surroundings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from distil_jax.errors import UserError
from distil_jax.hf import Tokenizer
from distil_jax.tasks.encoded import pieces
from distil_jax.tasks.examples import QuestionExample

UNKNOWN = -1  # start and end where no label can be given
_NO_ANSWER = 0  # position of [CLS], which stands for "no answer in this window"
_CONTEXTS_AT_ONCE = 1024  # tokenised together; bounds the memory that the tokenizer's own records take


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Window:
    """A question with a stretch of its context of C tokens, L tokens in all.

    Attributes:
        example: number of the question.
        ids: [L] int32, the question and a stretch of its context with the special tokens of a pair.
        context_start: position of the first context token.
        context_offsets: [C, 2] int32, first character of a context token in the context, and the one after its last.
        max_context: [C] bool, whether this window is the one that predicts answers starting there.
        context_type: segment of the context and what follows; that of the question is 0.
        start, end: positions of the first and last token of the first answer; both 0 where this window does not hold
            it whole or there is none; both -1 where the answers are unknown or no token covers the answer.
    """

    example: int
    ids: np.ndarray
    context_start: int
    context_offsets: np.ndarray
    max_context: np.ndarray
    start: int
    end: int
    context_type: int = 1

    @property
    def token_types(self) -> np.ndarray:
        """[L] int32: 0 for the question with its special tokens, `context_type` for what follows."""
        types = np.full(len(self.ids), self.context_type, np.int32)
        types[: self.context_start] = 0
        return types


@dataclasses.dataclass(frozen=True, slots=True)
class QuestionWindows:
    """The windows of all questions in order, and what a user should hear about.

    Attributes:
        windows: at least one a question.
        cut_questions: questions that were cut to max_question_length.
        inexact_answers: questions whose first answer begins or ends inside a token, so that the tokens say more.
        lost_answers: questions whose first answer no token covers, or is not at its place in the context; they have
            windows with start and end -1.
        split_answers: questions whose first answer no window holds whole; all their windows say "no answer". A longer
            max_length or a shorter doc_stride makes them fewer.
    """

    windows: list[Window]
    cut_questions: int
    inexact_answers: int
    lost_answers: int
    split_answers: int


def question_windows(
    tokenizer: Tokenizer,
    examples: Sequence[QuestionExample],
    *,
    max_length: int,
    doc_stride: int,
    max_question_length: int,
) -> QuestionWindows:
    """Tokenise questions and contexts, cut long contexts into windows, and find the answers' tokens.

    Args:
        tokenizer: of the model.
        examples: a context that many questions share is tokenised once.
        max_length: most tokens of a window, special ones included.
        doc_stride: tokens from the start of a window to the start of the next; more than fit into a window count as
            as many as fit, so that none is left out.
        max_question_length: most tokens of a question.

    Raises:
        UserError: lengths that leave no room for a context.
    """
    pair, special = tokenizer.pair, tokenizer.num_special(pair=True)
    if max_length - max_question_length - special < 1:
        raise UserError(
            f"task.max_length = {max_length} leaves no room for a context beside task.max_question_length = "
            f"{max_question_length} and {special} special tokens; raise the one or lower the other"
        )
    if doc_stride < 1:
        raise UserError(f"task.doc_stride = {doc_stride}: windows would not advance; must be at least 1")
    questions = pieces(tokenizer, (example.question for example in examples))
    contexts = _encode_contexts(tokenizer, examples)
    layouts: dict[tuple[int, int], list[tuple[int, np.ndarray]]] = {}
    windows: list[Window] = []
    counts = {"found": 0, "none": 0, "inexact": 0, "lost": 0, "split": 0}
    for number, (example, question) in enumerate(zip(examples, questions, strict=True)):
        tokens, places = contexts[example.context]
        head = np.array([*pair.before, *question[:max_question_length], *pair.between], np.int32)
        key = (len(tokens), max_length - len(head) - len(pair.after))
        layout = layouts.get(key) or layouts.setdefault(key, window_layout(*key, doc_stride))
        state, first, last = _answer_tokens(example, places)
        counts[state] += 1
        holders = 0
        for begin, max_context in layout:
            stop = begin + len(max_context)
            start, end = first, last
            if state in ("found", "inexact"):
                inside = begin <= first and last < stop
                holders += inside
                shift = len(head) - begin
                start, end = (first + shift, last + shift) if inside else (_NO_ANSWER, _NO_ANSWER)
            ids = np.concatenate([head, tokens[begin:stop], np.array(pair.after, np.int32)])
            windows.append(Window(number, ids, len(head), places[begin:stop], max_context, start, end, pair.types[1]))
        counts["split"] += state in ("found", "inexact") and not holders
    cut = sum(len(question) > max_question_length for question in questions)
    return QuestionWindows(windows, cut, counts["inexact"], counts["lost"], counts["split"])


def _encode_contexts(
    tokenizer: Tokenizer, examples: Sequence[QuestionExample]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Ids [T] and offsets [T, 2] of the tokens of each context, int32."""
    texts = list(dict.fromkeys(example.context for example in examples))
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for begin in range(0, len(texts), _CONTEXTS_AT_ONCE):
        some = texts[begin : begin + _CONTEXTS_AT_ONCE]
        for text, one in zip(some, tokenizer.backend.encode_batch(some, add_special_tokens=False), strict=True):
            offsets = np.array(one.offsets, np.int32).reshape(-1, 2)
            found[text] = np.array(one.ids, np.int32), offsets
    return found


def window_layout(tokens: int, room: int, stride: int) -> list[tuple[int, np.ndarray]]:
    """Windows over `tokens` tokens: (first token, [C] bool) of each, C at most `room`.

    A token is True in one window alone, that which shows the most around it.
    """
    begins = [0]
    while begins[-1] + room < tokens:
        begins.append(begins[-1] + min(room, stride))
    best, owner = np.full(tokens, -np.inf), np.zeros(tokens, np.int64)
    for number, begin in enumerate(begins):
        count = min(room, tokens - begin)
        places = np.arange(count)
        # Tokens on the poorer side, and a little for a longer window, as in the original; the first window keeps ties.
        score = np.minimum(places, count - 1 - places) + 0.01 * count
        better = score > best[begin : begin + count]
        best[begin : begin + count][better] = score[better]
        owner[begin : begin + count][better] = number
    return [(begin, owner[begin : begin + room] == number) for number, begin in enumerate(begins)]


_AnswerState = Literal["found", "none", "inexact", "lost"]


def _answer_tokens(example: QuestionExample, offsets: np.ndarray) -> tuple[_AnswerState, int, int]:
    """How the first answer lies in the context's tokens, and the fewest tokens that cover it (first, last)."""
    if example.answers is None:
        return "none", UNKNOWN, UNKNOWN
    if not example.answers:
        return "none", _NO_ANSWER, _NO_ANSWER
    answer = example.answers[0]
    begin, stop = answer.start, answer.start + len(answer.text)
    first = int(np.searchsorted(offsets[:, 1], begin, side="right"))
    last = int(np.searchsorted(offsets[:, 0], stop, side="left")) - 1
    if first > last or begin < 0 or example.context[begin:stop] != answer.text:
        return "lost", UNKNOWN, UNKNOWN
    covered = example.context[offsets[first, 0] : offsets[last, 1]]
    return "found" if covered == answer.text.strip() else "inexact", first, last


@dataclasses.dataclass(frozen=True, slots=True)
class Candidate:
    """An answer a model may give: text and first character of it in the context ("" and -1: no answer).

    `score` is its start logit plus its end logit, `probability` the softmax of the scores over a question's candidates.
    """

    text: str
    start: int
    score: float
    probability: float


@dataclasses.dataclass(frozen=True, slots=True)
class AnswerPrediction:
    """What is predicted for a question.

    Attributes:
        id: of the question.
        answer: the prediction.
        span: the best answer that is not "", whatever is predicted ("" only where the context has no token).
        no_answer_score: score of "no answer" minus that of `span`; no answer is predicted where it is above the
            threshold.
        n_best: candidates by falling score, texts differing; in version 2 "no answer" is always among them.
    """

    id: str
    answer: Candidate
    span: Candidate
    no_answer_score: float
    n_best: tuple[Candidate, ...]

    @property
    def text(self) -> str:
        """The predicted answer, "" for none."""
        return self.answer.text


def predict_answers(
    examples: Sequence[QuestionExample],
    windows: Sequence[Window],
    start_logits: Sequence[np.ndarray] | np.ndarray,
    end_logits: Sequence[np.ndarray] | np.ndarray,
    *,
    n_best: int,
    max_answer_length: int,
    null_threshold: float,
    version_2: bool,
) -> list[AnswerPrediction]:
    """The best spans of each question over its windows.

    A span starts at a token that its window shows best, ends in the same window, and has `max_answer_length` tokens at
    most. Of these, each window gives its `n_best` best ones (the original combines the `n_best` best starts and ends,
    which may miss some). "No answer" scores the sum of [CLS]'s two logits, in the window where that is least.

    Args:
        examples: the questions.
        windows: of these questions, in any order.
        start_logits: [at least L] a window; what is behind a window's own tokens is not looked at.
        end_logits: the same.
        n_best: candidates a question may have.
        max_answer_length: tokens.
        null_threshold: no answer is predicted where its score is more than this above the best span's.
        version_2: whether "no answer" may be predicted.

    Returns:
        A prediction for each example, in their order.

    Raises:
        ValueError: numbers of windows and logits that differ, or a question without window.
        UserError: logits that are not finite.
    """
    if not len(windows) == len(start_logits) == len(end_logits):
        raise ValueError(f"{len(windows)} windows, {len(start_logits)} start and {len(end_logits)} end logits")
    spans: list[list[tuple[float, int, int]]] = [[] for _ in examples]
    null_scores = np.full(len(examples), np.inf)
    for window, start, end in zip(windows, start_logits, end_logits, strict=True):
        length = len(window.ids)
        start, end = (np.asarray(logits, np.float64)[:length] for logits in (start, end))
        if min(len(start), len(end)) < length:
            raise ValueError(f"logits for {min(len(start), len(end))} of a window's {length} tokens")
        null = start[_NO_ANSWER] + end[_NO_ANSWER]
        null_scores[window.example] = min(null_scores[window.example], null)
        context = slice(window.context_start, window.context_start + len(window.context_offsets))
        start, end = start[context], end[context]
        if not (np.isfinite(null) and np.isfinite(start).all() and np.isfinite(end).all()):
            raise UserError(
                f"predictions for question {examples[window.example].id!r}: logits that are not finite, the model has "
                "diverged; lower optimizer.learning_rate"
            )
        spans[window.example] += _best_spans(window, start, end, n_best, max_answer_length)
    if np.isinf(null_scores).any():
        raise ValueError(f"question {examples[int(np.argmax(null_scores))].id!r} has no window")
    return [
        _prediction(example, found, float(null), n_best, null_threshold if version_2 else None)
        for example, found, null in zip(examples, spans, null_scores, strict=True)
    ]


def _best_spans(
    window: Window, start: np.ndarray, end: np.ndarray, n_best: int, max_answer_length: int
) -> list[tuple[float, int, int]]:
    """(score, first character, character after the last) of a window's best spans, best first; logits are [C]."""
    offsets = window.context_offsets
    count = len(offsets)
    width = min(max_answer_length, count)
    begins = np.flatnonzero(window.max_context)
    if not len(begins):
        return []
    ends = np.concatenate([end, np.full(width - 1, -np.inf)])
    # [begin, k]: the span from token begin to token begin + k.
    scores = start[begins, None] + np.lib.stride_tricks.sliding_window_view(ends, width)[begins]
    flat = scores.reshape(-1)
    few = min(n_best, int(np.sum(np.minimum(width, count - begins))))
    chosen = np.sort(np.argpartition(-flat, few - 1)[:few])
    chosen = chosen[np.argsort(-flat[chosen], kind="stable")]  # equal scores: the earlier, then the shorter span
    rows, extra = np.divmod(chosen, width)
    firsts, lasts = begins[rows], begins[rows] + extra
    return list(zip(flat[chosen].tolist(), offsets[firsts, 0].tolist(), offsets[lasts, 1].tolist(), strict=True))


def _prediction(
    example: QuestionExample,
    spans: list[tuple[float, int, int]],
    null_score: float,
    n_best: int,
    null_threshold: float | None,
) -> AnswerPrediction:
    """Picks from a question's spans; `null_threshold` None: an answer must be given."""
    ordered = sorted(spans, key=lambda span: -span[0])
    texts: dict[str, tuple[float, int]] = {}
    for score, begin, stop in ordered:
        texts.setdefault(example.context[begin:stop], (score, begin))
    # Where there is no span at all, the original lets "" stand for it with score 0.
    found = [(text, start, score) for text, (score, start) in list(texts.items())[:n_best]] or [("", UNKNOWN, 0.0)]
    no_answer_score = null_score - found[0][2]
    null = ("", UNKNOWN, null_score)
    every = found if null_threshold is None else sorted([*found, null], key=lambda one: -one[2])
    weights = np.exp(np.array([score for _, _, score in every]) - max(score for _, _, score in every))
    chances = (weights / weights.sum()).tolist()
    candidates = {one: Candidate(*one, chance) for one, chance in zip(every, chances, strict=True)}
    span = candidates[found[0]]
    withheld = null_threshold is not None and no_answer_score > null_threshold
    answer = candidates[null] if withheld else span
    return AnswerPrediction(example.id, answer, span, no_answer_score, tuple(candidates.values()))
