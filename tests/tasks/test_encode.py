"""Examples as numbers, against transformers' own tokenisation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distil_jax.config import TaskSettings
from distil_jax.errors import UserError
from distil_jax.hf import Tokenizer, load_tokenizer
from distil_jax.tasks.encode import IGNORED, encode_examples
from distil_jax.tasks.examples import Answer, ChoiceExample, QuestionExample, SequenceExample, TokenExample
from distil_jax.tasks.inference import predicted_tags

LONG = "the big old dog ran fast home to eat red fish with the cat"
SHORT = "a bird sings"


@pytest.fixture(scope="module")
def tokenizer(tiny_inputs: Path) -> Tokenizer:
    return load_tokenizer(tiny_inputs / "tokenizer")


@pytest.mark.parametrize(
    ("first", "second"), [(LONG, SHORT), (SHORT, LONG), (LONG, LONG), (SHORT, SHORT), (LONG, None)]
)
@pytest.mark.parametrize("length", [10, 13, 128])
def test_texts_and_pairs_are_what_transformers_makes_of_them(
    tokenizer: Tokenizer, tiny_inputs: Path, first: str, second: str | None, length: int
) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(tiny_inputs / "tokenizer"))
    expected = theirs(first, second, truncation="longest_first", max_length=length, return_token_type_ids=True)
    example = SequenceExample("0", first, second, 1)
    found = encode_examples(tokenizer, "sequence", [example], TaskSettings(max_length=length))
    if {len(first.split()), len((second or "").split())} != {14} or length == 128:  # ties: either may lose its token
        assert found.ids[0].tolist() == expected["input_ids"]
        assert found.types[0].tolist() == expected["token_type_ids"]
    assert len(found.ids[0]) == len(expected["input_ids"])
    whole = len(theirs(first, second)["input_ids"])
    assert found.notes == ((f"1 examples cut to {length} tokens",) if whole > length else ())


def test_labels_keep_their_sort(tokenizer: Tokenizer) -> None:
    def labels(*values: object) -> np.ndarray:
        examples = [SequenceExample(str(n), SHORT, None, value) for n, value in enumerate(values)]  # type: ignore[arg-type]
        encoded = encode_examples(tokenizer, "sequence", examples, TaskSettings())
        assert encoded.labels is not None
        return np.stack(encoded.labels)

    assert labels(0, 2).dtype == np.int32
    assert labels(0.5, 2.0).dtype == np.float32
    assert labels((0, 1, 1), (1, 0, 0)).tolist() == [[0, 1, 1], [1, 0, 0]]
    unknown = encode_examples(tokenizer, "sequence", [SequenceExample("0", SHORT)], TaskSettings())
    assert unknown.labels is None


def test_the_first_piece_of_a_word_carries_its_tag(tokenizer: Tokenizer) -> None:
    words = ("cat,", "dog", "sat.", "home")  # "cat," is two tokens, "sat." too
    encoded = encode_examples(tokenizer, "token", [TokenExample("0", words, (3, 0, 1, 2))], TaskSettings())
    assert encoded.labels is not None
    assert encoded.labels[0].tolist() == [IGNORED, 3, IGNORED, 0, 1, IGNORED, 2, IGNORED]
    tokens = [tokenizer.tokens()[number] for number in encoded.ids[0]]
    assert tokens == ["[CLS]", "cat", ",", "dog", "sat", ".", "home", "[SEP]"]


def test_a_word_that_the_tokenizer_drops_does_not_shift_the_others(tokenizer: Tokenizer) -> None:
    example = TokenExample("0", ("cat", "\x07", "home"), (1, 0, 2))
    encoded = encode_examples(tokenizer, "token", [example], TaskSettings())
    assert encoded.labels is not None
    assert encoded.labels[0].tolist() == [IGNORED, 1, 2, IGNORED]
    assert encoded.tagged[0][1].tolist() == [0, 2]
    logits = [np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]]
    assert predicted_tags(logits, encoded, [example], ["O", "B-X", "I-X"]) == [["B-X", "O", "I-X"]]


def test_a_long_sentence_is_read_in_parts_and_each_word_tagged_once(tokenizer: Tokenizer) -> None:
    words = tuple(LONG.split())
    example = TokenExample("0", words, tuple(range(len(words))))
    encoded = encode_examples(
        tokenizer, "token", [TokenExample("1", ("cat",), (0,)), example], TaskSettings(max_length=8)
    )
    assert encoded.labels is not None
    assert encoded.notes == ("1 sentences of more than 8 tokens read in parts",)
    assert encoded.lengths.max() == 8
    tags = np.concatenate([row[row != IGNORED] for row in encoded.labels[1:]])
    assert sorted(tags.tolist()) == list(range(len(words)))
    # Inside the sentence a word is tagged where two words or more stand on either side of it.
    for labels in encoded.labels[2:-1]:
        owned = np.flatnonzero(labels != IGNORED)
        assert owned.min() >= 1 + 1 and owned.max() <= len(labels) - 1 - 2
    # Logits that say what the labels are give the words their tags back, across the parts.
    names = [f"B-{i}" for i in range(len(words))]
    logits = [np.eye(len(names), dtype=np.float32)[row] for row in encoded.labels]
    assert predicted_tags(logits, encoded, [TokenExample("1", ("cat",)), example], names) == [["B-0"], names]


def test_answers_point_at_their_tokens(tokenizer: Tokenizer) -> None:
    example = QuestionExample("q", "what does the cat eat", LONG, (Answer("red fish", LONG.index("red fish")),))
    settings = TaskSettings(max_length=32, doc_stride=8, max_question_length=8)
    encoded = encode_examples(tokenizer, "question", [example], settings)
    assert encoded.labels is not None
    start, end = encoded.labels[0]
    assert tokenizer.backend.decode(encoded.ids[0][start : end + 1].tolist()) == "red fish"


def test_questions_whose_answer_no_token_covers_are_not_trained_on(tokenizer: Tokenizer) -> None:
    broken = QuestionExample("q", "where", "cat   sat", (Answer(" ", 4),))
    good = QuestionExample("p", "where", "cat sat", (Answer("sat", 4),))
    encoded = encode_examples(tokenizer, "question", [broken, good], TaskSettings(), training=True)
    assert [window.example for window in encoded.windows] == [1]
    assert any("answers" in note for note in encoded.notes)


def test_endings_are_rows_of_one_length(tokenizer: Tokenizer) -> None:
    example = ChoiceExample("0", SHORT, ("fast", LONG), 1)
    encoded = encode_examples(tokenizer, "choice", [example], TaskSettings())
    one = encode_examples(tokenizer, "sequence", [SequenceExample("0", SHORT, "fast")], TaskSettings())
    assert encoded.ids[0].shape == (2, 3 + 3 + 14)
    assert encoded.ids[0][0, : len(one.ids[0])].tolist() == one.ids[0].tolist()
    assert set(encoded.ids[0][0, len(one.ids[0]) :].tolist()) == {tokenizer.pad_id}
    with pytest.raises(UserError, match="from 1 to 2 endings"):
        encode_examples(tokenizer, "choice", [example, ChoiceExample("1", SHORT, ("fast",), 0)], TaskSettings())
