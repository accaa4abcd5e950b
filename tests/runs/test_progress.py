"""Progress on a screen and in a log."""

from __future__ import annotations

import io
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from distil_jax.data.corpus.prepare import PrepareProgress
from distil_jax.runs import Progress, announce, prepare_display


class Clock:
    """A clock that tests move."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def plain(total: int | None, updates: list[tuple[float, int, float]], **options: Any) -> list[str]:
    """Lines printed by updates of (second, done, tokens since the last)."""
    stream, clock = io.StringIO(), Clock()
    with Progress("distill", total, mode="plain", stream=stream, clock=clock, **options) as progress:
        for second, done, amount in updates:
            clock.now = 100 + second
            progress.update(done, amount=amount, text=f"loss {10 / done:.3f}")
    return stream.getvalue().splitlines()


def test_plain_progress_tells_loss_speed_and_time_left() -> None:
    # The first update comes late (compiling): speed counts from there, 2 s and 3,000 tokens a step.
    lines = plain(200, [(60 + 2 * step, step, 3000) for step in range(1, 31)])
    assert lines[0] == "distill: 1/200 (0 %)  loss 10.000"
    assert lines[1] == "distill: 6/200 (3 %)  loss 1.667  1.5k tokens/s  6:28 left"
    assert lines[-1] == "distill: 30/200 (15 %)  loss 0.333  1.5k tokens/s  5:40 left"
    assert len(lines) == 7  # one every ten seconds, and one at the end


def test_plain_progress_of_a_resumed_run_and_of_unknown_length() -> None:
    lines = plain(10_000, [(1, 5001, 10), (2, 5002, 10)], start=5000)
    assert lines[-1] == "distill: 5002/10000 (50 %)  loss 0.002  10 tokens/s  1:23:18 left"
    lines = plain(None, [(1, 1, 10), (3, 2, 5e6)], unit="bytes")
    assert lines[-1] == "distill: 2  loss 5.000  2.5M bytes/s"


def test_progress_that_ends_at_once_or_shows_nothing() -> None:
    assert plain(10, []) == []
    assert plain(10, [(1, 10, 5)]) == ["distill: 10/10 (100 %)  loss 1.000"]
    stream = io.StringIO()
    with Progress("distill", 2, mode="none", stream=stream) as progress:
        progress.update(1)
        progress.update(2)
    assert stream.getvalue() == ""


def test_progress_bar_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream, clock = Terminal(), Clock()
    with Progress("distill", 40, stream=stream, clock=clock) as progress:
        for step in range(1, 41):
            clock.now += 1
            progress.update(step, amount=1000, text="loss 2.500")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "distill" in text and "40/40" in text and "loss 2.500" in text and "1.0k tokens/s" in text


def test_display_of_prepare_follows_each_split() -> None:
    def state(read: int, total: int | None, tokens: int) -> PrepareProgress:
        return PrepareProgress(
            bytes_read=read,
            bytes_total=total,
            text_bytes=3 * read,
            documents=1,
            sequences=1,
            tokens=tokens,
            rows=1,
            blocks=1,
            blocks_reused=0,
            elapsed=1.0,
        )

    stream = io.StringIO()
    with prepare_display("plain", stream=stream) as display:
        display("train", state(500, 1000, 1234))
        display("train", state(1000, 1000, 2500))
        display("validation", state(10, None, 9))
    lines = stream.getvalue().splitlines()
    assert lines[0] == "prepare train: 50 %  1,234 tokens"
    assert lines[1].startswith("prepare train: 100 %  2,500 tokens")
    assert lines[2:] == ["prepare validation: 9 tokens"]


def test_lines_are_announced_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    announce(["task SST-2", "train: 10 rows read"])
    announce([])
    assert capsys.readouterr() == ("", "task SST-2\ntrain: 10 rows read\n")


_CELL = """
import sys
from distil_jax.runs import Progress
with Progress("distil", 3) as progress:
    for number in range(3):
        progress.update(number + 1, amount=10, text="loss 1.5")
    progress.note("step 3: kl 0.5")
print(progress._mode)
"""


def test_a_notebook_shows_a_bar() -> None:
    """In a kernel; needs what runs notebooks."""
    formats = pytest.importorskip("nbformat", reason="notebooks are not installed: pip install nbclient ipykernel")
    client = pytest.importorskip("nbclient", reason="notebooks are not installed: pip install nbclient ipykernel")
    pytest.importorskip("ipywidgets", reason="rich's widgets are not installed: pip install 'rich[jupyter]'")
    book = formats.v4.new_notebook(cells=[formats.v4.new_code_cell(_CELL)])
    client.NotebookClient(book, timeout=300).execute()
    outputs = book.cells[0].outputs
    assert any(one.get("text", "").strip().endswith("bar") for one in outputs)
    shown = "".join(str(one.get("data", one.get("text", ""))) for one in outputs)
    assert "step 3: kl 0.5" in shown and "application/vnd.jupyter.widget-view+json" in shown


@pytest.mark.parametrize(("widgets", "mode"), [(True, "bar"), (False, "plain")])
def test_without_widgets_a_notebook_gets_lines(widgets: bool, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object() if widgets else None)
    assert Progress("distil", 3)._mode == mode
    assert Progress("distil", 3, stream=io.StringIO())._mode == "plain"
