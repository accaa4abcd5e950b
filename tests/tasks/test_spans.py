"""Windows against the definition and against transformers; answers against a search over all spans."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distil_jax.errors import UserError
from distil_jax.hf import Tokenizer, load_tokenizer
from distil_jax.tasks.examples import Answer, QuestionExample
from distil_jax.tasks.metrics.squad import normalise_answer
from distil_jax.tasks.spans import QuestionWindows, Window, predict_answers, question_windows

WORDS = "the cat dog sat on a mat and ran home to eat red fish with big old blue sea bird".split()  # noqa: SIM905
LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *LETTERS, *".,?'", *(f"##{c}" for c in LETTERS)]
CONTEXT = "The old dog, which ran home, sat on a red mat. A big bird sat with it; the cat ran to the sea to eat fish."


@pytest.fixture(scope="module")
def vocabulary_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    path.write_text("\n".join(dict.fromkeys(VOCABULARY)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer(vocabulary_file: Path) -> Tokenizer:
    return load_tokenizer(vocabulary_file)


def asked(answer: str | None = None, *, question: str = "who sat?", context: str = CONTEXT, **changes: Any) -> Any:
    """A question about CONTEXT with its answer there ("" for no answer, None for unknown ones)."""
    answers = None if answer is None else (Answer(answer, context.index(answer)),) if answer else ()
    return QuestionExample(**{"id": "q", "question": question, "context": context, "answers": answers, **changes})


def windows_of(tokenizer: Tokenizer, *examples: QuestionExample, length: int = 20, stride: int = 4) -> QuestionWindows:
    return question_windows(tokenizer, examples, max_length=length, doc_stride=stride, max_question_length=8)


def oracle_logits(windows: list[Window]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Noise, with a peak at each window's own start and end."""
    rng, starts, ends = np.random.default_rng(0), [], []
    for window in windows:
        for found, place in ((starts, window.start), (ends, window.end)):
            found.append(rng.normal(size=len(window.ids)).astype(np.float32))
            found[-1][place] += 30
    return starts, ends


def characters(window: Window, first: int, last: int) -> tuple[int, int]:
    """(first character, one after the last) in the context of the tokens at these positions of a window."""
    offsets = window.context_offsets
    return int(offsets[first - window.context_start, 0]), int(offsets[last - window.context_start, 1])


def predict(examples: list[QuestionExample], windows: list[Window], starts: Any, ends: Any, **changes: Any) -> Any:
    options = {"n_best": 20, "max_answer_length": 30, "null_threshold": 0.0, "version_2": False, **changes}
    return predict_answers(examples, windows, starts, ends, **options)


# Windows


def test_a_window_is_question_and_context_in_brackets(tokenizer: Tokenizer) -> None:
    (window,) = windows_of(tokenizer, asked(context="the cat ran home"), length=30).windows
    ids = tokenizer.backend.encode("who sat?", "the cat ran home").ids
    np.testing.assert_array_equal(window.ids, ids)
    assert window.ids.dtype == window.token_types.dtype == window.context_offsets.dtype == np.int32
    np.testing.assert_array_equal(window.token_types, tokenizer.backend.encode("who sat?", "the cat ran home").type_ids)
    assert window.context_offsets.tolist() == [[0, 3], [4, 7], [8, 11], [12, 16]]
    assert window.context_start == len(ids) - 5  # the four tokens and [SEP] are behind it
    assert window.max_context.all() and window.example == 0


def naive_windows(tokens: int, room: int, stride: int) -> list[tuple[int, int]]:
    """(first, count) as the original makes them."""
    found, start = [], 0
    while start < tokens:
        count = min(tokens - start, room)
        found.append((start, count))
        if start + count == tokens:
            break
        start += min(count, stride)
    return found


def naive_owner(spans: list[tuple[int, int]], token: int) -> int:
    """The window with most context of a token: the poorer side counts, a longer window is a little better."""
    best, owner = -math.inf, -1
    for number, (start, count) in enumerate(spans):
        if start <= token < start + count:
            score = min(token - start, start + count - 1 - token) + 0.01 * count
            if score > best:
                best, owner = score, number
    return owner


@given(words=st.integers(1, 60), length=st.integers(13, 30), stride=st.integers(1, 30))
@example(words=250, length=248, stride=120)  # the last window is more than 100 tokens shorter, which counts
def test_windows_as_defined(tokenizer: Tokenizer, words: int, length: int, stride: int) -> None:
    context = " ".join(WORDS[number % len(WORDS)] for number in range(words))
    windows = windows_of(tokenizer, asked(context=context), length=length, stride=stride).windows
    head = len(tokenizer.backend.encode("who sat?").ids)
    spans = naive_windows(words, length - head - 1, stride)
    all_ids = tokenizer.backend.encode(context, add_special_tokens=False).ids
    assert len(windows) == len(spans)
    for number, (window, (start, count)) in enumerate(zip(windows, spans, strict=True)):
        assert window.ids.tolist()[head:-1] == all_ids[start : start + count]
        assert len(window.ids) <= length
        owners = [naive_owner(spans, token) for token in range(start, start + count)]
        assert window.max_context.tolist() == [owner == number for owner in owners]
    covered = [begin for window in windows for begin in window.context_offsets[window.max_context, 0].tolist()]
    assert sorted(covered) == [
        begin for begin, _ in tokenizer.backend.encode(context, add_special_tokens=False).offsets
    ]


@pytest.mark.parametrize(("length", "stride"), [(20, 4), (20, 13), (17, 1), (64, 16)])
def test_windows_as_transformers_makes_them(
    tokenizer: Tokenizer, vocabulary_file: Path, length: int, stride: int
) -> None:
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=load_tokenizer(vocabulary_file).backend,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
    )
    windows = windows_of(tokenizer, asked(), length=length, stride=stride).windows
    room = length - windows[0].context_start - 1
    reference = fast(
        "who sat?",
        CONTEXT,
        truncation="only_second",
        max_length=length,
        stride=max(0, room - stride),  # there it is the overlap
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    assert [window.ids.tolist() for window in windows] == reference["input_ids"]
    assert [window.token_types.tolist() for window in windows] == reference["token_type_ids"]
    for window, mapping in zip(windows, reference["offset_mapping"], strict=True):
        first = window.context_start
        assert window.context_offsets.tolist() == [list(one) for one in mapping[first:-1]]


def test_long_questions_are_cut_and_counted(tokenizer: Tokenizer) -> None:
    long = asked(question="the cat and the dog and the bird sat on a mat")
    found = windows_of(tokenizer, asked(), long, asked(question="the cat and the dog and the bird"))
    assert found.cut_questions == 1
    window = next(window for window in found.windows if window.example == 1)
    assert window.context_start == 10
    words = tokenizer.backend.encode("the cat and the dog and the bird").ids[:-1]
    np.testing.assert_array_equal(window.ids[:9], words)


def test_no_room_is_refused(tokenizer: Tokenizer) -> None:
    windows_of(tokenizer, asked(), length=12)
    with pytest.raises(UserError, match="task.max_length = 11 leaves no room .* task.max_question_length = 8"):
        windows_of(tokenizer, asked(), length=11)
    with pytest.raises(UserError, match="task.doc_stride = 0"):
        windows_of(tokenizer, asked(), stride=0)


def test_answers_lie_at_their_tokens(tokenizer: Tokenizer) -> None:
    found = windows_of(tokenizer, asked("red mat"), length=24)
    holding = [window for window in found.windows if window.end > 0]
    assert 0 < len(holding) < len(found.windows)
    for window in found.windows:
        text = tokenizer.backend.decode(window.ids[window.start : window.end + 1].tolist(), skip_special_tokens=False)
        shown = CONTEXT[window.context_offsets[0, 0] : window.context_offsets[-1, 1]]
        assert text == ("red mat" if "red mat" in shown else "[CLS]")
        assert (window in holding) == ("red mat" in shown)
    assert (found.inexact_answers, found.lost_answers) == (0, 0)


def test_the_first_answer_counts(tokenizer: Tokenizer) -> None:
    answers = (Answer("bird", CONTEXT.index("bird")), Answer("dog", CONTEXT.index("dog")))
    (window,) = windows_of(tokenizer, asked(answers=answers), length=200).windows
    assert characters(window, window.start, window.end) == (CONTEXT.index("bird"), CONTEXT.index("bird") + 4)
    assert window.end == window.start


@pytest.mark.parametrize(
    ("context", "answer", "covered", "inexact"),
    [
        ("it has 18zz dogs", "zz", "zz", 0),  # every letter is a token here, so this can be told exactly
        ("the dogcat ran", "cat", "cat", 0),
        ("the catz", "cat", "catz", 1),
        ("the cat ran", " cat ", "cat", 0),
        ("caf\u00e9 a", "caf\u00e9", "caf\u00e9", 0),
        ("\u4e2d\u6587 cat", "\u6587", "\u6587", 0),
        ("\U0001f431 cat \U0001f431 dog", "dog", "dog", 0),  # offsets are in characters, not in bytes or code units
    ],
)
def test_fewest_tokens_that_cover_an_answer(
    tmp_path: Path, context: str, answer: str, covered: str, inexact: int
) -> None:
    pieces = [
        "catz",
        "dog",
        "##cat",
        "1",
        *(f"##{digit}" for digit in "18"),
        "caf\u00e9",
        "cafe",
        "\u6587",
        "\U0001f431",
    ]
    (tmp_path / "vocab.txt").write_text("\n".join(dict.fromkeys([*VOCABULARY, *pieces])), encoding="utf-8")
    found = windows_of(load_tokenizer(tmp_path), asked(answer, context=context), length=40)
    (window,) = found.windows
    begin, stop = characters(window, window.start, window.end)
    assert context[begin:stop] == covered
    assert (found.inexact_answers, found.lost_answers) == (inexact, 0)


def test_an_answer_that_no_window_holds_is_counted(tokenizer: Tokenizer) -> None:
    example = asked(CONTEXT[4 : CONTEXT.index(". A big")])  # 10 tokens
    assert windows_of(tokenizer, example, length=30).split_answers == 0
    found = windows_of(tokenizer, example, length=14)
    assert (found.split_answers, found.lost_answers) == (1, 0)
    assert {(window.start, window.end) for window in found.windows} == {(0, 0)}


def test_questions_without_a_label(tokenizer: Tokenizer) -> None:
    lost = [asked(answers=(Answer(text, place),)) for text, place in ((" ", 3), ("dog", 3), ("dog", 1000), ("dog", -3))]
    found = windows_of(tokenizer, asked(None), asked(""), *lost)
    labels = {number: set() for number in range(6)}
    for window in found.windows:
        labels[window.example].add((window.start, window.end))
    assert labels == {0: {(-1, -1)}, 1: {(0, 0)}, **{number: {(-1, -1)} for number in range(2, 6)}}
    assert (found.inexact_answers, found.lost_answers) == (0, 4)


# Answers


def brute_force(
    example: QuestionExample, windows: list[Window], starts: list[np.ndarray], ends: list[np.ndarray], longest: int
) -> list[tuple[float, str, int]]:
    """(score, text, first character) of every text a span may have, the best first."""
    found: dict[str, tuple[float, str, int]] = {}
    for window, start, end in zip(windows, starts, ends, strict=True):
        for first in range(len(window.ids)):
            place = first - window.context_start
            if not (0 <= place < len(window.max_context) and window.max_context[place]):
                continue
            for last in range(first, min(first + longest, len(window.ids) - 1)):
                begin, stop = characters(window, first, last)
                text, score = example.context[begin:stop], float(start[first]) + float(end[last])
                if text not in found or score > found[text][0]:
                    found[text] = (score, text, int(begin))
    return sorted(found.values(), key=lambda one: -one[0])


@given(seed=st.integers(0, 10_000), stride=st.integers(1, 14), n_best=st.integers(1, 12), longest=st.integers(1, 40))
def test_best_spans_as_found_by_trying_all(
    tokenizer: Tokenizer, seed: int, stride: int, n_best: int, longest: int
) -> None:
    example = asked()
    windows = windows_of(tokenizer, example, stride=stride).windows
    rng = np.random.default_rng(seed)
    # Longer than the windows, with what must not be looked at behind.
    starts, ends = ([np.append(rng.normal(size=len(w.ids)), [1e9, np.nan]) for w in windows] for _ in range(2))
    (found,) = predict([example], windows, starts, ends, n_best=n_best, max_answer_length=longest)
    expected = brute_force(example, windows, starts, ends, longest)
    assert 1 <= len(found.n_best) <= n_best
    for one, (score, text, first) in zip(found.n_best, expected, strict=False):
        assert (one.score, one.text, one.start) == (pytest.approx(score), text, first)
        assert example.context[first:].startswith(text)
    assert found.text == expected[0][1] and found.answer == found.span == found.n_best[0]
    chances = np.exp([one.score for one in found.n_best])
    np.testing.assert_allclose([one.probability for one in found.n_best], chances / chances.sum(), rtol=1e-9)
    null = min(float(start[0]) + float(end[0]) for start, end in zip(starts, ends, strict=True))
    assert found.no_answer_score == pytest.approx(null - expected[0][0])


def one_window(tokenizer: Tokenizer, null: float, *, context: str = "the cat ran") -> tuple[Any, Any, Any, Any]:
    """ "cat" scores 3, "the cat" 2.5, the rest much less; "no answer" scores `null`."""
    example = asked(context=context)
    windows = windows_of(tokenizer, example, length=30).windows
    start, end = (np.full(len(windows[0].ids), -9.0, np.float32) for _ in range(2))
    first = windows[0].context_start
    start[first : first + 2], end[first + 1] = (1.0, 1.5), 1.5
    start[0] = end[0] = null / 2
    return [example], windows, [start], [end]


@pytest.mark.parametrize(
    ("null", "threshold", "text"),
    [(2.0, 0.0, "cat"), (4.0, 0.0, ""), (4.0, 2.0, "cat"), (2.0, -2.0, ""), (3.0, 0.0, "cat")],
)
def test_no_answer_where_it_beats_the_span_by_the_threshold(
    tokenizer: Tokenizer, null: float, threshold: float, text: str
) -> None:
    (found,) = predict(*one_window(tokenizer, null), null_threshold=threshold, version_2=True)
    assert (found.text, found.answer.start) == (text, 4 if text else -1)
    assert (found.span.text, found.span.score) == ("cat", 3.0)
    assert found.no_answer_score == pytest.approx(null - 3.0)
    scores = {one.text: one.score for one in found.n_best}
    assert (scores[""], scores["cat"], scores["the cat"]) == (null, 3.0, 2.5)
    assert [one.score for one in found.n_best] == sorted(scores.values(), reverse=True)
    assert sum(one.probability for one in found.n_best) == pytest.approx(1)


def test_version_1_always_answers(tokenizer: Tokenizer) -> None:
    (found,) = predict(*one_window(tokenizer, 50.0))
    assert found.text == "cat" and found.no_answer_score == pytest.approx(47.0)
    assert "" not in [one.text for one in found.n_best]


def test_no_answer_takes_the_window_that_is_least_for_it(tokenizer: Tokenizer) -> None:
    example = asked()
    windows = windows_of(tokenizer, example).windows
    starts, ends = ([np.zeros(len(w.ids), np.float32) for w in windows] for _ in range(2))
    for number, start in enumerate(starts):
        start[0] = 5.0 + number
    (found,) = predict([example], windows, starts, ends, version_2=True)
    assert len(windows) > 2 and found.no_answer_score == 5.0 and found.text == ""


def test_a_token_is_predicted_by_its_best_window_only(tokenizer: Tokenizer) -> None:
    example = asked()
    windows = windows_of(tokenizer, example).windows
    starts, ends = ([np.zeros(len(w.ids), np.float32) for w in windows] for _ in range(2))
    place = int(np.flatnonzero(~windows[0].max_context)[0])
    starts[0][windows[0].context_start + place] = 90.0  # another window shows this token better
    (found,) = predict([example], windows, starts, ends)
    assert found.answer.score == 0.0


def test_predictions_come_in_the_order_of_the_questions(tokenizer: Tokenizer) -> None:
    examples = [asked(answer, id=answer) for answer in ("bird", "red mat", "fish")]
    windows = windows_of(tokenizer, *examples).windows[::-1]
    found = predict(examples, windows, *oracle_logits(windows))
    assert [(one.id, one.text) for one in found] == [(answer, answer) for answer in ("bird", "red mat", "fish")]


def test_a_context_without_tokens(tokenizer: Tokenizer) -> None:
    example = asked(context="  ")
    (window,) = windows_of(tokenizer, example).windows
    assert window.ids.tolist() == tokenizer.backend.encode("who sat?", "").ids
    for version_2 in (False, True):
        (found,) = predict([example], [window], *oracle_logits([window]), version_2=version_2)
        assert (found.text, found.answer.start) == ("", -1) and math.isfinite(found.no_answer_score)


def test_what_does_not_fit_is_refused(tokenizer: Tokenizer) -> None:
    examples, windows, starts, ends = one_window(tokenizer, 0.0)
    with pytest.raises(ValueError, match="1 windows, 2 start and 1 end logits"):
        predict(examples, windows, [*starts, *starts], ends)
    with pytest.raises(ValueError, match="logits for 3 of a window's"):
        predict(examples, windows, [starts[0][:3]], ends)
    with pytest.raises(ValueError, match="'other' has no window"):
        predict([*examples, asked(id="other")], windows, starts, ends)
    with pytest.raises(UserError, match="not finite"):
        predict(examples, windows, [starts[0] * np.nan], ends)


@pytest.mark.parametrize(
    ("name", "length", "stride", "inexact"),
    [
        ("split-dev.json", 384, 128, None),
        ("split-dev.json", 192, 32, None),
        pytest.param("dev-v1.1.json", 384, 128, 27, marks=pytest.mark.slow),
        pytest.param("dev-v2.0.json", 384, 128, 6, marks=pytest.mark.slow),
    ],
)
def test_a_perfect_model_answers_real_questions(
    shared: Path, name: str, length: int, stride: int, inexact: int | None
) -> None:
    examples = [
        asked(
            question=row["question"],
            context=paragraph["context"],
            answers=tuple(Answer(answer["text"], answer["answer_start"]) for answer in row["answers"]),
        )
        for article in json.loads((shared / "data/squad" / name).read_text(encoding="utf-8"))["data"]
        for paragraph in article["paragraphs"]
        for row in paragraph["qas"]
    ]
    tokenizer = load_tokenizer(shared / "data/vocab/bert-base-uncased-tokenizer.json")
    found = question_windows(tokenizer, examples, max_length=length, doc_stride=stride, max_question_length=64)
    assert (found.cut_questions, found.lost_answers) == (0, 0)
    predictions = predict(
        examples, found.windows, *oracle_logits(found.windows), max_answer_length=90, version_2="2.0" in name
    )
    answers = [example.answers[0].text if example.answers else "" for example in examples]
    pairs = list(zip(predictions, answers, strict=True))
    wrong = [(one.text, answer) for one, answer in pairs if normalise_answer(one.text) != normalise_answer(answer)]
    # Only answers that begin or end inside a token ("8" of "18") are missed: they are counted, and covered.
    assert all(answer in text for text, answer in wrong)
    assert 0 < len(wrong) <= found.inexact_answers < 0.005 * len(examples)
    assert found.split_answers == 0
    assert inexact is None or inexact == found.inexact_answers
