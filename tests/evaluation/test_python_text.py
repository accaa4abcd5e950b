"""Prose of the Python installation, the same every time, with nothing held out that is trained on."""

from __future__ import annotations

import pydoc_data.topics
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from distil_jax.evaluation.python_text import python_documents, write_python_text

PROSE = "This function of {name} returns a value that no reader would expect."


def module(name: str, *more: str) -> str:
    body = "\n".join(f'def f{number}():\n    """{text}"""\n' for number, text in enumerate(more))
    return f'"""{PROSE.format(name=name)}\n\nToo short.\n\n>>> an example of six plain words in it\n"""\n{body}'


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of a few files in place of the real one, with two help topics."""
    root: Path = tmp_path / "library"
    for name in (
        "b.py",
        "a.py",
        "json/decoder.py",
        "test/hidden.py",
        "json/tests/hidden.py",
        "site-packages/hidden.py",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(module(name.replace("/", " ").removesuffix(".py")))
    (root / "broken.py").write_text("def half(:\n")
    (root / "null.py").write_bytes(b"x = '\x00'\n")
    (root / "odd.py").write_bytes(b"# -*- coding: nonsense -*-\n'''text'''\n")
    (root / "empty.py").write_text("")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(root)})
    monkeypatch.setattr(pydoc_data.topics, "topics", {"if": PROSE.format(name="if"), "and": PROSE.format(name="and")})
    return root


def test_modules_and_topics_in_a_fixed_order(library: Path) -> None:
    assert list(python_documents()) == [
        ("a.py", [PROSE.format(name="a")]),
        ("b.py", [PROSE.format(name="b")]),
        ("json/decoder.py", [PROSE.format(name="json decoder")]),
        ("topic and", [PROSE.format(name="and")]),
        ("topic if", [PROSE.format(name="if")]),
    ]


def test_paragraphs_are_single_lines_of_prose_from_every_docstring(library: Path) -> None:
    lines = "One paragraph of prose\n       that goes over\ttwo lines.\n\n       x = [1, 2, 3]; y(a, b); z"
    body = f'class A:\n    """{lines}"""\n    async def g(self):\n'
    body += '        """A coroutine has words like any other function."""\n'
    (library / "a.py").write_text(body)
    assert dict(python_documents())["a.py"] == [
        "One paragraph of prose that goes over two lines.",
        "A coroutine has words like any other function.",
    ]


def test_every_twelfth_document_is_held_out_and_never_trained_on(library: Path, tmp_path: Path) -> None:
    same = "The same paragraph of plain words stands in many of the modules."
    for number in range(30):
        (library / f"m{number:02}.py").write_text(module(f"m{number}", same))
    train, validation = write_python_text(tmp_path / "text")
    documents = [set(path.read_text().strip().split("\n\n")) for path in (train, validation)]
    assert len(documents[0]) + len(documents[1]) == 35
    assert len(documents[1]) == 2
    paragraphs = [set(path.read_text().split("\n")) - {""} for path in (train, validation)]
    assert not paragraphs[0] & paragraphs[1]
    assert train.read_text().count(same) == 1


def test_writing_again_gives_the_same_bytes_and_touches_nothing(library: Path, tmp_path: Path) -> None:
    paths = write_python_text(tmp_path / "text")
    before: Any = [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths]
    assert write_python_text(tmp_path / "text") == paths
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in paths] == before


@pytest.mark.slow
def test_the_real_installation_gives_about_two_megabytes(tmp_path: Path) -> None:
    train, validation = write_python_text(tmp_path)
    assert 1e6 < train.stat().st_size < 8e6
    assert 0.03 < validation.stat().st_size / train.stat().st_size < 0.3
