"""What people read on stderr while something runs: lines, and how far a long step is."""

from __future__ import annotations

import collections
import contextlib
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from distil_jax.data.corpus import PrepareProgress

ProgressMode = Literal["auto", "bar", "plain", "none"]


def announce(lines: Iterable[str]) -> None:
    """Prints lines on stderr, on the main process alone."""
    import jax

    if jax.process_index() == 0:
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        sys.stderr.flush()


class Progress:
    """Progress of one long step on stderr: a bar on a terminal or in a notebook, otherwise a line now and then.

    Use it as a context manager. Speed and time left are those of the last `WINDOW` updates, so that compiling before
    the first one doesn't count.
    """

    WINDOW = 50
    SECONDS_BETWEEN_LINES = 10.0

    def __init__(
        self,
        title: str,
        total: int | None,
        *,
        start: int = 0,
        mode: ProgressMode = "auto",
        unit: str = "tokens",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        counted: bool = True,
    ) -> None:
        """Describe the step.

        Args:
            title: what is going on, "distil".
            total: pieces of work in all (optimiser steps), None if not known.
            start: pieces done before, by a run that was interrupted.
            mode: as the setting logging.progress.
            unit: what `amount` of `update` counts; shown per second.
            stream: where to; stderr by default.
            clock: seconds, for tests.
            counted: show "12/100"; false where pieces are bytes, which only give a share.
        """
        self._title, self._total, self._unit, self._counted = title, total, unit, counted
        self._stream: TextIO = sys.stderr if stream is None else stream
        self._clock = clock
        self._in_notebook = stream is None and _is_notebook()
        shown = self._stream.isatty() or self._in_notebook
        self._mode = ("bar" if shown else "plain") if mode == "auto" else mode
        self._done, self._amount, self._text = start, 0.0, ""
        self._marks: collections.deque[tuple[float, int, float]] = collections.deque(maxlen=self.WINDOW)
        self._last_line = -math.inf
        self._bar: RichProgress | None = None

    def __enter__(self) -> Progress:
        if self._mode == "bar":
            self._bar = _make_bar(None if self._in_notebook else self._stream, self._counted)
            self._bar.start()
            self._bar.add_task(self._title, total=self._total, completed=self._done, text="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._mode == "plain" and self._marks and self._last_line < self._marks[-1][0]:
            self._print_line()

    def update(self, done: int, *, amount: float = 0.0, text: str = "") -> None:
        """Tell how far it is.

        Args:
            done: pieces done in all.
            amount: units of work since the last call.
            text: anything else to show.
        """
        self._done, self._amount, self._text = done, self._amount + amount, text
        now = self._clock()
        self._marks.append((now, done, self._amount))
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, text=self.describe())
        elif self._mode == "plain" and now - self._last_line >= self.SECONDS_BETWEEN_LINES:
            self._print_line()
            self._last_line = now

    def busy(self, text: str) -> None:
        """Show what is done between two updates, "compiling"."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], text=text)
        elif self._mode == "plain" and self._clock() - self._last_line >= self.SECONDS_BETWEEN_LINES:
            self._print(text)
            self._last_line = self._clock()

    def note(self, text: str) -> None:
        """Print a line that stays, above the bar."""
        if self._bar is not None:
            self._bar.console.print(f"{self._title}: {text}", highlight=False, markup=False)
        elif self._mode == "plain":
            self._print(text)

    def describe(self) -> str:
        """Text, speed and time left: "loss 3.142  18.3k tokens/s  0:42 left"."""
        parts = [self._text] if self._text else []
        rate, pieces = self._speed(2), self._speed(1)
        if rate:
            parts.append(f"{_short(rate)} {self._unit}/s")
        if pieces and self._total is not None:
            parts.append(f"{_clock_text((self._total - self._done) / pieces)} left")
        return "  ".join(parts)

    def _speed(self, column: Literal[1, 2]) -> float | None:
        if len(self._marks) < 2 or self._marks[-1][0] <= self._marks[0][0]:
            return None
        return (self._marks[-1][column] - self._marks[0][column]) / (self._marks[-1][0] - self._marks[0][0])

    def _print_line(self) -> None:
        parts = [str(self._done)] if self._counted else []
        if self._total is not None:
            share = 100 * self._done // max(self._total, 1)
            parts = [f"{self._done}/{self._total} ({share} %)" if self._counted else f"{share} %"]
        self._print("  ".join([*parts, self.describe()]).strip())

    def _print(self, text: str) -> None:
        print(f"{self._title}:", text, file=self._stream, flush=True)


@contextlib.contextmanager
def prepare_display(
    mode: ProgressMode = "auto", *, stream: TextIO | None = None
) -> Iterator[Callable[[str, PrepareProgress], None]]:
    """Progress of `prepare`, a display for each split: what takes a split and its state after a block of it.

    `mode` is the setting logging.progress; `stream` is stderr by default.
    """
    with contextlib.ExitStack() as shown:
        displays: dict[str, Progress] = {}
        text_bytes: dict[str, int] = collections.defaultdict(int)

        def update(split: str, state: PrepareProgress) -> None:
            if split not in displays:
                shown.close()  # that of the split before
                display = Progress(
                    f"prepare {split}", state.bytes_total, mode=mode, unit="bytes", stream=stream, counted=False
                )
                displays[split] = shown.enter_context(display)
            amount, text_bytes[split] = state.text_bytes - text_bytes[split], state.text_bytes
            displays[split].update(state.bytes_read, amount=amount, text=f"{state.tokens:,} tokens")

        yield update


def _is_notebook() -> bool:
    """Whether this is a notebook that can show a bar: its cells have a kernel, and rich's widgets are installed."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel") and importlib.util.find_spec("ipywidgets") is not None


def _make_bar(stream: TextIO | None, counted: bool) -> RichProgress:
    """A bar on a stream; None: in the cell of a notebook."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as RichProgress

    console = Console(file=stream) if stream is not None else Console(force_jupyter=True)
    count = MofNCompleteColumn() if counted else TaskProgressColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), count, TextColumn("{task.fields[text]}"))
    return RichProgress(*columns, console=console, refresh_per_second=2)


def _short(number: float) -> str:
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.1f}{letter}"
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def _clock_text(seconds: float) -> str:
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
