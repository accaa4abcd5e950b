"""What Orbax leaves behind after a damaged checkpoint is not printed; everything else is."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from distil_jax.runs.log_filters import filter_storage_logs


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What reaches the hook of before."""
    found: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", found.append)
    filter_storage_logs()
    filter_storage_logs()  # a second call adds nothing
    return found


def unraisable(error: BaseException, file: str = "") -> Any:
    coroutine = SimpleNamespace(cr_code=SimpleNamespace(co_filename=file)) if file else None
    return SimpleNamespace(exc_value=error, object=coroutine)


def test_dropped_reads_are_not_printed(seen: list[Any]) -> None:
    sys.unraisablehook(unraisable(RuntimeError("Event loop is closed")))
    sys.unraisablehook(unraisable(ValueError("x"), "/site-packages/orbax/checkpoint/reader.py"))
    assert seen == []


def test_other_errors_are(seen: list[Any]) -> None:
    errors = [unraisable(RuntimeError("other")), unraisable(ValueError("x"), "/site-packages/mine/reader.py")]
    for error in errors:
        sys.unraisablehook(error)
    assert seen == errors


def test_logs_of_errors_that_were_not_retrieved(seen: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("asyncio")
    logger.error("Task exception was never retrieved")
    logger.error("something else")
    assert caplog.messages == ["something else"]
