"""A thread beside the main one that notices what it cannot: to be told to end, another process that failed, a stall."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from types import TracebackType

import jax

from distil_jax.config import Config
from distil_jax.errors import PreemptedError
from distil_jax.runs import coordination
from distil_jax.runs.preemption import NOTHING_NEW, Preemption, Signal, say, write_line

LOOK_SECONDS = 0.5  # with GRACE_SECONDS less than coordination.DELIVERY_SECONDS
GRACE_SECONDS = 1.0  # for a mistake that all processes find, which each of them reports by itself
SILENT_SECONDS = 12.0  # without a sign of life after which a process counts as dead; JAX takes 14 to 28
_OVER = "over"


class Stall:
    """How long nothing has been finished. Time in which this process itself was stopped does not count."""

    def __init__(self, minutes: float) -> None:
        """Take the setting parallel.stall_minutes; 0: never complain."""
        self._limit = 60 * minutes
        self._idle = 0.0
        self._last = "the start"

    def alive(self, what: str) -> None:
        """Note that something was finished."""
        self._idle, self._last = 0.0, what

    def complaint(self, seconds: float) -> str:
        """What is wrong after another `seconds` of watching; "" for nothing."""
        self._idle += seconds
        if not self._limit or self._idle < self._limit:
            return ""
        return (
            f"nothing was finished for {self._limit / 60:g} minutes (parallel.stall_minutes), the last thing was "
            f"{self._last}; this process hangs, or another one that it waits for"
        )


class Heartbeat:
    """Signs of life of all processes; the first one listens to the others (and JAX, in them, to the first)."""

    def __init__(self) -> None:
        self._number = 0
        self._seen: dict[str, tuple[str, int]] = {}  # process -> its last sign, and when it was new

    def complaint(self) -> str:
        """Give a sign; what is wrong with those of others, "" for nothing. To be called every LOOK_SECONDS."""
        self._number += 1
        coordination.publish(f"beats/{jax.process_index()}", str(self._number), overwrite=True)
        return self.judge(coordination.read_all("beats")) if jax.process_index() == 0 else ""

    def judge(self, beats: dict[str, str]) -> str:
        """As `complaint`, of the last sign of each process by its name, "beats/3"."""
        for name, sign in beats.items():
            if self._seen.get(name, ("", 0))[0] != sign:
                self._seen[name] = sign, self._number
            elif sign != _OVER and (self._number - self._seen[name][1]) * LOOK_SECONDS >= SILENT_SECONDS:
                process = coordination.process_name(int(name.rpartition("/")[2]))
                return f"{process} was not heard of for {SILENT_SECONDS:g} seconds: it died, or was stopped"
        return ""

    @staticmethod
    def end() -> None:
        """Say that no more signs will come, and nothing is wrong."""
        coordination.publish(f"beats/{jax.process_index()}", _OVER, overwrite=True)


class Watchdog:
    """Watches over a run from the reading of its inputs to its end; use it as a context manager.

    Raises `PreemptedError` at the end of the block where the run was told to end meanwhile.
    """

    def __init__(self, config: Config) -> None:
        self.preemption = Preemption()
        self.stall = Stall(config.parallel.stall_minutes)
        self._beats = Heartbeat()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def __enter__(self) -> Watchdog:
        self._signal = Signal()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        self._signal.wake()
        self._thread.join()
        self._signal.close()
        if kind is None and coordination.is_distributed():
            Heartbeat.end()
        if kind is None and self.preemption.noticed:
            say(NOTHING_NEW)
            raise PreemptedError  # what comes after this run is for the next process

    def go(self) -> None:
        """Begin a computation of all processes, see `Preemption.go`; also a sign that nothing hangs."""
        self.preemption.go()
        self.stall.alive(f"the start of computation {self.preemption.done}")

    def _look(self) -> None:
        while not self._over.is_set():
            if self._signal.wait(LOOK_SECONDS):
                self.preemption.notice()
            if complaint := self.stall.complaint(LOOK_SECONDS):
                _end_stalled(complaint)
            if coordination.is_distributed():
                self._look_at_others()
            self.preemption.look()

    def _look_at_others(self) -> None:
        news = coordination.read_all("news")
        if coordination.STALLED in news:
            _end_stalled(f"{news[coordination.STALLED]}; this one ends with it")
        if coordination.FAILED in news and not self._over.wait(GRACE_SECONDS):
            _end(f"{news[coordination.FAILED]}; this one ends with it")
        if coordination.PREEMPTED in news:
            self.preemption.notice()
        if complaint := self._beats.complaint():
            coordination.publish_failure(complaint)
            _end(complaint)


def _end_stalled(complaint: str) -> None:
    """End all processes, each with the stacks of all its threads."""
    try:
        write_line(f"distil-jax: fault: {complaint}")
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        if coordination.is_distributed():
            coordination.publish(coordination.STALLED, f"{coordination.process_name(jax.process_index())}: {complaint}")
            # A process that is gone ends the others before they show anything, and the first one does so at once.
            time.sleep((1 if jax.process_index() else 3) * coordination.DELIVERY_SECONDS)
    finally:  # whatever became of those who read it
        os._exit(1)


def _end(complaint: str) -> None:
    """End this process, since going on is useless."""
    write_line(f"distil-jax: fault: {complaint}")
    os._exit(1)
