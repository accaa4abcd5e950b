"""A run that is asked to end saves its state and ends: SIGTERM when the machine is taken away, or Ctrl-C.

It stops at the next point between two computations that all processes share, the same one in all of them. Where the
main thread does not reach it soon, since it compiles, reads or evaluates, the watchdog's thread saves in its place. A
second Ctrl-C ends the process at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax

from distil_jax.errors import PreemptedError, one_line
from distil_jax.runs import coordination
from distil_jax.runs.folder import CONFIG_FILE
from distil_jax.runs.lock import release_all

Save = Callable[[], str]  # saves the state and returns what to say about it
NOTHING_NEW = "nothing new to save"
_GRACE_SECONDS = 2.0  # within which the main thread may stop by itself
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_FROM_HANDLER = 0x80  # added to a signal's number where Python's handler writes it
_SHOW_CURSOR = "\x1b[?25h"  # which a progress bar hides


class Preemption:
    """When to stop, agreed on by all processes.

    The main thread calls `go` before everything that processes compute together, and marks by `interruptible` where it
    changes nothing that would be saved. The other methods are for the watchdog's thread.
    """

    def __init__(self, folder: str = "") -> None:
        """`folder` is the run's, for messages."""
        self._folder = folder
        self._lock = threading.RLock()
        self._done = 0  # shared computations that this process has begun
        self._last = time.monotonic()
        self._signal: int | None = None
        self._stop_at: int | None = None  # the number of shared computations before which all processes stop
        self._save: Save | None = None
        self._leaving = False  # the main thread is saving

    @property
    def done(self) -> int:
        """Shared computations begun so far."""
        return self._done

    @property
    def noticed(self) -> bool:
        """Whether the run was asked to end."""
        return self._signal is not None

    def go(self) -> None:
        """Begin one more computation that all processes take part in; to be called inside `interruptible`.

        Raises:
            PreemptedError: the run ends before it.
        """
        while True:
            with self._lock:
                self._last = time.monotonic()
                if not self.noticed or (self._stop_at is not None and self._done < self._stop_at):
                    self._done += 1
                    return
                if self._stop_at is not None:
                    raise self.error()
            time.sleep(0.02)  # until all processes have published how far they are

    @contextlib.contextmanager
    def interruptible(self, save: Save = lambda: NOTHING_NEW) -> Iterator[None]:
        """Inside the block the process may be ended after a call of `save`, by whichever thread comes first."""
        with self._lock:
            self._save, self._last = save, time.monotonic()
        try:
            yield
        except PreemptedError:
            with self._lock:  # the other thread holds it while it saves and ends the process
                self._leaving = True
            self.say(save())
            raise
        finally:
            with self._lock:
                self._save = None

    def notice(self, number: int) -> None:
        """Take note that this process, or another one of the run, was asked to end by a signal."""
        with self._lock:
            if self._signal is not None:
                return
            self._signal = number
            if number == signal.SIGINT and jax.process_index() == 0:
                write_line("distil-jax: interrupted: saving after this step; Ctrl-C again ends at once")
            if not coordination.is_distributed():
                self._stop_at = self._done
                return
            coordination.publish(coordination.STOPPED, str(number))
            coordination.publish(f"stops/{jax.process_index()}", str(self._done))

    def look(self) -> None:
        """Find out when to stop; end the process where the main thread cannot. To be called now and then."""
        if self.noticed and self._stop_at is None:
            reached = coordination.read_all("stops").values()
            if len(reached) == jax.process_count():
                self._stop_at = max(map(int, reached))
        with self._lock:
            if self._stop_at is None or self._done < self._stop_at or self._leaving:
                return
            if self._done == 0:
                self._end(lambda: NOTHING_NEW)
            if self._save is not None and time.monotonic() - self._last > _GRACE_SECONDS:
                self._end(self._save)

    def error(self) -> PreemptedError:
        """What the main thread ends with."""
        return PreemptedError(self._signal or signal.SIGTERM)

    def _end(self, save: Save) -> NoReturn:
        """Save and end the process, whatever its main thread does."""
        status = self.error().status
        try:
            self.say(save())
            if coordination.is_distributed():
                jax.distributed.shutdown()  # which waits for the others: the first process runs the service
        except BaseException as error:
            status = 1
            write_line(f"distil-jax: fault: asked to end, but the state was not saved: {one_line(error, 1000)}")
        exit_now(status)

    def say(self, saved: str) -> None:
        """Print in one line how the run was left."""
        if jax.process_index() == 0:
            word = "interrupted" if self._signal == signal.SIGINT else "preempted"
            known = (Path(self._folder) / CONFIG_FILE).is_file()
            resume = f", as does `distil-jax resume {self._folder}`" if known else ""
            write_line(f"{word}: {saved}; the same command continues{resume}")


def end_at_once() -> NoReturn:
    """End the process without saving, at a second Ctrl-C."""
    write_line("distil-jax: interrupted twice: ended at once; the newest checkpoint remains")
    exit_now(PreemptedError(signal.SIGINT).status)


def exit_now(status: int) -> NoReturn:
    """End the process from any thread: release its folders, show the cursor, and exit."""
    release_all()
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr.isatty():
            sys.stderr.write(_SHOW_CURSOR)
            sys.stderr.flush()
    os._exit(status)


def write_line(text: str) -> None:
    """Write a line to stderr, if its reader is still there."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


class Signals:
    """Notices SIGTERM and Ctrl-C, also while the main thread is in a long call where Python's handlers do not run."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._before: list[tuple[int, Any]] = []
        self._descriptor = -1
        self._bytes: list[int] = []
        if threading.current_thread() is threading.main_thread():  # others can't set handlers
            # Python's own part writes the signal's number at once, whatever runs. The handler runs later; it is there
            # for an event loop that borrows the file descriptor meanwhile.
            ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # as in a shell's background
            for number in _SIGNALS[:1] if ignored else _SIGNALS:
                self._before.append((number, signal.signal(number, self._handle)))
            self._descriptor = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def _handle(self, number: int, _: object) -> None:
        os.write(self._writer, bytes([number | _FROM_HANDLER]))

    def wait(self, seconds: float) -> None:
        """Wait for a signal at most so long."""
        if select.select([self._reader], [], [], seconds)[0]:
            self._bytes.extend(os.read(self._reader, 4096))

    def times(self, number: int) -> int:
        """How often a signal came so far."""
        return max(self._bytes.count(number), self._bytes.count(number | _FROM_HANDLER))

    def wake(self) -> None:
        """Let `wait` return."""
        os.write(self._writer, b"\0")

    def close(self) -> None:
        """Put back the handlers of before."""
        if self._before:
            signal.set_wakeup_fd(self._descriptor)
        for number, handler in self._before:
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        os.close(self._reader)
        os.close(self._writer)
