"""Ending early and in good order when the machine is taken away (SIGTERM).

The run stops at the next point between two computations that all processes share, the same one in all of them, and
saves its state. Where the main thread does not get there soon, since it compiles, reads or measures, the watching
thread saves in its place.
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

import jax

from distil_jax.errors import PreemptedError, one_line
from distil_jax.runs import coordination
from distil_jax.runs.lock import release_all

Save = Callable[[], str]  # saves what is there and returns what to say about it
NOTHING_NEW = "nothing new to save"
_GRACE_SECONDS = 2.0  # that the main thread has to come to a stop by itself


class Preemption:
    """When to stop, agreed on by all processes.

    The main thread calls `go` before everything that processes compute together, and says by `interruptible` when
    nothing it does changes what would be saved. The other methods are for the watching thread.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._done = 0  # shared computations that this process has begun
        self._last = time.monotonic()
        self._noticed = False
        self._stop_at: int | None = None  # no process begins more of them
        self._save: Save | None = None
        self._leaving = False  # the main thread is

    @property
    def done(self) -> int:
        """Shared computations begun so far."""
        return self._done

    @property
    def noticed(self) -> bool:
        """Whether the run was told to end."""
        return self._noticed

    def go(self) -> None:
        """Begin one more computation that all processes take part in.

        Raises:
            PreemptedError: not any more; only inside of `interruptible`.
        """
        while True:
            with self._lock:
                self._last = time.monotonic()
                if not self._noticed or (self._stop_at is not None and self._done < self._stop_at):
                    self._done += 1
                    return
                if self._stop_at is not None:
                    raise PreemptedError
            time.sleep(0.02)  # until all processes have said how far they are

    @contextlib.contextmanager
    def interruptible(self, save: Save = lambda: NOTHING_NEW) -> Iterator[None]:
        """While in here, the process may be ended after a call of `save`, by whichever thread comes first."""
        with self._lock:
            self._save, self._last = save, time.monotonic()
        try:
            yield
        except PreemptedError:
            with self._lock:  # not to be had any more where the other thread saves: it ends the process
                self._leaving = True
            say(save())
            raise
        finally:
            with self._lock:
                self._save = None

    def notice(self) -> None:
        """Take note that this process, or another one of the run, was told to end."""
        with self._lock:
            if self._noticed:
                return
            self._noticed = True
            if not coordination.is_distributed():
                self._stop_at = self._done
                return
            coordination.publish(coordination.PREEMPTED, coordination.process_name(jax.process_index()))
            coordination.publish(f"stops/{jax.process_index()}", str(self._done))

    def look(self) -> None:
        """Of the watching thread, now and then: find out when to stop; end the process where the main one cannot."""
        if self._noticed and self._stop_at is None:
            reached = coordination.read_all("stops").values()
            if len(reached) == jax.process_count():
                self._stop_at = max(map(int, reached))
        with self._lock:
            if self._stop_at is None or self._done < self._stop_at or self._leaving:
                return
            if self._done == 0:
                _end(lambda: NOTHING_NEW)
            if self._save is not None and time.monotonic() - self._last > _GRACE_SECONDS:
                _end(self._save)


def _end(save: Save) -> None:
    """Save and end the process, whatever its main thread is about."""
    status = PreemptedError.STATUS
    try:
        say(save())
        if coordination.is_distributed():
            jax.distributed.shutdown()  # which waits for the others: the first process serves them
    except BaseException as error:
        status = 1
        write_line(f"distil-jax: fault: preempted, but the state was not saved: {one_line(error, 1000)}")
    release_all()
    os._exit(status)


def say(saved: str) -> None:
    """Tell the user, in one line, how the run was left."""
    if jax.process_index() == 0:
        write_line(f"preempted: {saved}; the same command continues")


def write_line(text: str) -> None:
    """Write a line to stderr, if there still is somebody who reads it."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


class Signal:
    """Notices SIGTERM, also while the main thread sits in a long call where Python handlers do not run."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)
        self._before: tuple[object, int] | None = None
        if threading.current_thread() is threading.main_thread():  # others can't set handlers
            # Python's own part writes the signal's number at once, whatever runs; the handler comes later, and is
            # there for an event loop that borrows the file descriptor meanwhile.
            previous = signal.signal(signal.SIGTERM, lambda *_: os.write(self._writer, bytes([signal.SIGTERM])))
            self._before = previous, signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def wait(self, seconds: float) -> bool:
        """Wait for a signal at most so long; whether it came."""
        if not select.select([self._reader], [], [], seconds)[0]:
            return False
        return signal.SIGTERM in os.read(self._reader, 4096)

    def wake(self) -> None:
        """Let `wait` return."""
        os.write(self._writer, b"\0")

    def close(self) -> None:
        """Leave SIGTERM to whoever had it before."""
        if self._before is not None:
            handler, descriptor = self._before
            signal.set_wakeup_fd(descriptor)
            signal.signal(signal.SIGTERM, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]
        os.close(self._reader)
        os.close(self._writer)
