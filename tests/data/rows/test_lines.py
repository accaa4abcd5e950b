"""Lines of bytes: checked, numbered and whole, however they are cut into chunks."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distil_jax.data.rows import Faults, batches_of_lines, is_utf8
from distil_jax.data.rows.files import as_utf8
from distil_jax.data.rows.lines import chunks_of_pipe, numbered_lines
from distil_jax.errors import UserError


def lines(*chunks: bytes, faults: Faults | None = None, limit: int = 1000) -> list[tuple[int, str | None]]:
    return [*numbered_lines(batches_of_lines(iter(chunks), "a", faults or Faults(), limit))]


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff")), st.integers(1, 5))
def test_chunks_may_be_cut_anywhere(text: str, size: int) -> None:
    data = text.encode()
    found = lines(*(data[i : i + size] for i in range(0, len(data), size)))
    wanted = text.split("\n")
    assert [line for _, line in found] == (wanted if wanted[-1] else wanted[:-1])
    assert [number for number, _ in found] == [*range(1, len(found) + 1)]


def test_only_line_feeds_end_lines_and_marks_are_dropped() -> None:
    assert lines("\ufeffone\x85\u2028\r\ntwo\x0b".encode()) == [(1, "one\x85\u2028\r"), (2, "two\x0b")]
    assert lines() == lines(b"") == lines(b"\xef\xbb\xbf")[1:] == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"na\xefve", r"line 2: not valid UTF-8 \(byte 3"),
        (b"a\0", "line 2: holds a NUL"),
        ("x".encode("utf-16"), "line 2: holds a NUL"),
        (b"x" * 1001, "line 2: longer than max_line_bytes = 1000"),
    ],
)
def test_bad_lines_stop_or_are_left_out(bad: bytes, message: str) -> None:
    with pytest.raises(UserError, match=f"a, {message}"):
        lines(b"good\n" + bad + b"\nmore")
    faults = Faults(skip=True)
    assert lines(b"good\n" + bad + b"\nmore", faults=faults) == [(1, "good"), (2, None), (3, "more")]
    assert faults.count == 1


def test_what_is_utf_8() -> None:
    assert is_utf8(b"") and is_utf8("ä".encode()) and not is_utf8("ä".encode()[:1])


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_utf_16_is_read_by_its_mark(codec: str, size: int) -> None:
    data = "\ufeffone\nzwö 𝄞\n".encode(codec)
    chunks = as_utf8((data[i : i + size] for i in range(0, len(data), size)), "a")
    assert lines(*chunks) == [(1, "one"), (2, "zwö 𝄞")]
    with pytest.raises(UserError, match="a: begins as UTF-16"):
        lines(*as_utf8(iter([data[:-1]]), "a"))


def test_what_came_through_a_pipe_is_given_on() -> None:
    assert [*chunks_of_pipe(io.BytesIO(b"one\ntwo"))] == [b"one\ntwo"]
