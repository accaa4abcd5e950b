"""Examples as numbers: token ids, segments and labels, each as long as it is; padding is the batches' affair."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from distil_jax.config import TaskSettings
from distil_jax.errors import UserError
from distil_jax.tasks.examples import ChoiceExample, Example, Kind, QuestionExample, SequenceExample, TokenExample
from distil_jax.tasks.spans import QuestionWindows, Window, question_windows, window_layout

if TYPE_CHECKING:
    from distil_jax.hf import Tokenizer

IGNORED = -1  # label of a token that is not predicted
Ids = list[int]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Rows of one set, in the order of its examples (questions and long sentences: of their windows).

    Attributes:
        ids: a row's tokens [L] int32; of a choice [C, L], padded with `pad_id` to its longest ending.
        types: segments, shaped as `ids`.
        labels: a row's label: class number or score (), scores or 0/1 a class [K], a tag a token [L] with `IGNORED`
            where none is predicted, (start, end) [2], number of the choice (); None where labels are not known.
        lengths: [N] int32, tokens a row (of the longest ending).
        pad_id: id that fills up.
        notes: what a user should hear, such as how many examples were longer than allowed and lost their end.
        windows: of questions; empty for other kinds.
        tagged: of sentences, the number of a row's sentence, and those of the words whose tags its labels are (each
            word of a sentence in one row); empty for other kinds.
    """

    ids: list[np.ndarray]
    types: list[np.ndarray]
    labels: list[np.ndarray] | None
    lengths: np.ndarray
    pad_id: int
    notes: tuple[str, ...]
    windows: list[Window] = dataclasses.field(default_factory=list)
    tagged: list[tuple[int, np.ndarray]] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)


def encode_examples(
    tokenizer: Tokenizer, kind: Kind, examples: Sequence[Example], settings: TaskSettings, *, training: bool = False
) -> Encoded:
    """Tokenise examples of one kind.

    A pair that is too long loses tokens at the end of its longer text, as in BERT's own code.

    Args:
        tokenizer: of the model.
        kind: of all examples.
        examples: the set.
        settings: max_length and, for questions, the windows.
        training: drop questions whose answer no token covers.
    """
    encode = cast("Callable[..., Encoded]", _ENCODERS[kind])
    return encode(tokenizer, examples, settings, training)


def longest_row(settings: TaskSettings, kind: Kind) -> int:
    """Tokens a row may have: task.max_length, or what is usual for the kind of task."""
    return settings.max_length or (384 if kind == "question" else 128)


def _pieces(tokenizer: Tokenizer, texts: Iterable[str]) -> list[Ids]:
    return [found.ids for found in tokenizer.backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def _joined(tokenizer: Tokenizer, first: Ids, second: Ids | None, max_length: int) -> tuple[Ids, Ids, bool]:
    """[CLS] first [SEP] (second [SEP]) with its segments, and whether it had to be cut."""
    if second is None:
        kept = first[: max_length - 2]
        return [tokenizer.cls_id, *kept, tokenizer.sep_id], [0] * (len(kept) + 2), len(kept) < len(first)
    room = max_length - 3
    shorter = min(len(first), len(second))
    one = min(len(first), max(room - shorter, (room + 1) // 2) if len(first) > len(second) else room - room // 2)
    two = min(len(second), room - one)
    one = min(len(first), room - two)
    ids = [tokenizer.cls_id, *first[:one], tokenizer.sep_id, *second[:two], tokenizer.sep_id]
    return ids, [0] * (one + 2) + [1] * (two + 1), one < len(first) or two < len(second)


def _assembled(
    tokenizer: Tokenizer,
    rows: list[tuple[Any, Any]],
    labels: list[np.ndarray] | None,
    notes: tuple[str, ...],
    **more: Any,
) -> Encoded:
    ids = [np.asarray(row, np.int32) for row, _ in rows]
    types = [np.asarray(segments, np.int32) for _, segments in rows]
    lengths = np.array([row.shape[-1] for row in ids], np.int32)
    return Encoded(ids, types, labels, lengths, tokenizer.pad_id, notes, **more)


def _cut(count: int, limit: int) -> tuple[str, ...]:
    return (f"{count:,} examples cut to {limit} tokens",) if count else ()


def _labels(values: Sequence[Any]) -> list[np.ndarray] | None:
    """Labels as arrays; None where any is unknown."""
    if any(value is None for value in values):
        return None
    return [np.asarray(value, np.float32 if isinstance(value, float | tuple) else np.int32) for value in values]


def _encode_sequences(
    tokenizer: Tokenizer, examples: Sequence[SequenceExample], settings: TaskSettings, training: bool
) -> Encoded:
    del training
    texts = _pieces(tokenizer, (example.text for example in examples))
    pairs = iter(_pieces(tokenizer, (example.pair for example in examples if example.pair is not None)))
    rows, cut, limit = [], 0, longest_row(settings, "sequence")
    for example, text in zip(examples, texts, strict=True):
        second = None if example.pair is None else next(pairs)
        ids, types, shortened = _joined(tokenizer, text, second, limit)
        rows.append((ids, types))
        cut += shortened
    return _assembled(tokenizer, rows, _labels([example.label for example in examples]), _cut(cut, limit))


def _encode_tokens(
    tokenizer: Tokenizer, examples: Sequence[TokenExample], settings: TaskSettings, training: bool
) -> Encoded:
    """The first piece of a word carries its tag, the others none (Devlin et al. 2019, section 5.3).

    Sentences that are too long become several rows that overlap by half.
    """
    del training
    words = _pieces(tokenizer, itertools.chain.from_iterable(example.words for example in examples))
    room = longest_row(settings, "token") - 2
    rows, labels, tagged, long, first = [], [], [], 0, 0
    for number, example in enumerate(examples):
        pieces = words[first : first + len(example.words)]
        first += len(example.words)
        ids = list(itertools.chain.from_iterable(pieces))
        # Of some words, a control character say, the tokenizer leaves nothing.
        sizes = np.array([len(piece) for piece in pieces])
        numbers = np.flatnonzero(sizes)
        places = (np.cumsum(sizes) - sizes)[numbers]
        # Where the tags are not known, 0 only marks the tokens that get a prediction.
        tags = np.zeros(len(numbers), np.int32) if example.tags is None else np.asarray(example.tags)[numbers]
        layout = window_layout(len(ids), room, max(room // 2, 1))
        long += len(layout) > 1
        for begin, owned in layout:
            inside = np.flatnonzero((places >= begin) & (places < begin + len(owned)))
            inside = inside[owned[places[inside] - begin]]
            row = np.full(len(owned) + 2, IGNORED, np.int32)
            row[places[inside] - begin + 1] = tags[inside]
            rows.append(_joined(tokenizer, ids[begin : begin + len(owned)], None, room + 2)[:2])
            labels.append(row)
            tagged.append((number, numbers[inside]))
    notes = (f"{long:,} sentences of more than {room + 2} tokens read in parts",) if long else ()
    return _assembled(tokenizer, rows, labels, notes, tagged=tagged)


def _encode_questions(
    tokenizer: Tokenizer, examples: Sequence[QuestionExample], settings: TaskSettings, training: bool
) -> Encoded:
    found = question_windows(
        tokenizer,
        examples,
        max_length=longest_row(settings, "question"),
        doc_stride=settings.doc_stride,
        max_question_length=settings.max_question_length,
    )
    windows = [window for window in found.windows if window.start >= 0] if training else found.windows
    rows = [(window.ids, window.token_types) for window in windows]
    known = all(window.start >= 0 for window in windows)
    labels = [np.array([window.start, window.end], np.int32) for window in windows] if known else None
    return _assembled(tokenizer, rows, labels, _question_notes(found, settings), windows=windows)


def _question_notes(found: QuestionWindows, settings: TaskSettings) -> tuple[str, ...]:
    counts = {
        f"questions cut to {settings.max_question_length} tokens": found.cut_questions,
        "answers begin or end inside a token": found.inexact_answers,
        "answers have no token or are not at their place in the context": found.lost_answers,
        "answers are in no window whole": found.split_answers,
    }
    return tuple(f"{count:,} {what}" for what, count in counts.items() if count)


def _encode_choices(
    tokenizer: Tokenizer, examples: Sequence[ChoiceExample], settings: TaskSettings, training: bool
) -> Encoded:
    del training
    counts = {len(example.endings) for example in examples}
    if len(counts) > 1:
        raise UserError(
            f"task {settings.name}: examples have from {min(counts)} to {max(counts)} endings; give all alike"
        )
    prompts = _pieces(tokenizer, (example.prompt for example in examples))
    endings = iter(_pieces(tokenizer, itertools.chain.from_iterable(example.endings for example in examples)))
    rows, cut, limit = [], 0, longest_row(settings, "choice")
    for example, prompt in zip(examples, prompts, strict=True):
        joined = [_joined(tokenizer, prompt, next(endings), limit) for _ in example.endings]
        length = max(len(ids) for ids, _, _ in joined)
        ids = [row + [tokenizer.pad_id] * (length - len(row)) for row, _, _ in joined]
        types = [row + [0] * (length - len(row)) for _, row, _ in joined]
        rows.append((ids, types))
        cut += any(shortened for _, _, shortened in joined)
    return _assembled(tokenizer, rows, _labels([example.label for example in examples]), _cut(cut, limit))


_ENCODERS = {
    "sequence": _encode_sequences,
    "token": _encode_tokens,
    "question": _encode_questions,
    "choice": _encode_choices,
}


def word_logits(
    encoded: Encoded, logits: Sequence[np.ndarray], sentences: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Numbers [W] of the words of each sentence that a token stands for, and the logits [W, K] of their tags."""
    assert encoded.labels is not None
    found: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in range(sentences)]
    for row, labels, (sentence, words) in zip(logits, encoded.labels, encoded.tagged, strict=True):
        found[sentence].append((words, row[np.flatnonzero(labels != IGNORED)]))
    return (
        (np.concatenate(words), np.concatenate(rows)) for words, rows in (zip(*parts, strict=True) for parts in found)
    )
