"""Own data in files, written and read in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distil_jax.config import TaskSettings
from distil_jax.tasks.data.load import load_task


@pytest.fixture(scope="session")
def write() -> Callable[..., str]:
    """A function (path, text, bytes or rows of JSON Lines) -> the path as text, with the content in it."""

    def write(path: Path, text: str | bytes | list[dict[str, Any]]) -> str:
        if isinstance(text, list):
            text = "".join(json.dumps(row) + "\n" for row in text)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


@pytest.fixture(scope="session")
def load() -> Callable[..., Any]:
    """A function (name of the task, seed=0, **settings of [task]) -> its data."""

    def load(name: str, seed: int = 0, **settings: Any) -> Any:
        return load_task(TaskSettings(name=name, **settings), seed)

    return load
