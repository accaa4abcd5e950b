"""English text in every Python installation: docstrings of the standard library and the help topics."""

from __future__ import annotations

import ast
import inspect
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_SKIPPED = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "turtledemo",
    "pydoc_data",
    "__pycache__",
}
_MIN_WORDS = 6  # shorter paragraphs are signatures and headings


def python_documents() -> Iterator[tuple[str, list[str]]]:
    """(name, paragraphs) of every module with docstrings and every help topic, in a fixed order."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if not _SKIPPED.isdisjoint(relative.parts[:-1]):
            continue
        paragraphs = list(_docstring_paragraphs(path))
        if paragraphs:
            yield relative.as_posix(), paragraphs
    from pydoc_data.topics import topics

    for name in sorted(topics):
        paragraphs = list(_paragraphs(topics[name]))
        if paragraphs:
            yield f"topic {name}", paragraphs


def _docstring_paragraphs(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # some versions ship invalid files for tests
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and (text := ast.get_docstring(node)):
            yield from _paragraphs(inspect.cleandoc(text))


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of prose, each on one line; examples and code are left out."""
    for block in text.replace("\x00", "").split("\n\n"):
        line = " ".join(block.split())
        words = [word for word in line.split() if word.isalpha()]
        if len(words) >= _MIN_WORDS and ">>>" not in line:
            yield line


def write_python_text(folder: Path, held_out: int = 12) -> tuple[Path, Path]:
    """Write train.txt and validation.txt (every `held_out`-th document), a paragraph a line.

    Returns:
        The two paths; about 2 MB together. The text depends only on the Python version.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts: tuple[list[str], list[str]] = ([], [])
    seen: set[str] = set()
    for number, (_, paragraphs) in enumerate(python_documents()):
        fresh = [paragraph for paragraph in dict.fromkeys(paragraphs) if paragraph not in seen]
        seen.update(fresh)  # so that no held-out paragraph is trained on
        if fresh:
            texts[number % held_out == held_out - 1].append("\n".join(fresh) + "\n")
    paths = folder / "train.txt", folder / "validation.txt"
    for path, documents in zip(paths, texts, strict=True):
        text = "\n".join(documents).encode("utf-8", "replace")
        if not path.is_file() or path.read_bytes() != text:
            path.write_bytes(text)
    return paths
