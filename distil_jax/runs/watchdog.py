"""A thread beside the main one that notices what it cannot: a signal to end, another process that failed, a stall."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from types import TracebackType
from typing import NoReturn

import jax

from distil_jax.config import Config
from distil_jax.runs import coordination
from distil_jax.runs.preemption import NOTHING_NEW, Preemption, Signals, end_at_once, exit_now, write_line

LOOK_SECONDS = 0.5  # with GRACE_SECONDS less than coordination.DELIVERY_SECONDS
GRACE_SECONDS = 1.0  # for an error that all processes find: each of them reports it by itself
SILENT_SECONDS = 12.0  # without a heartbeat, after which a process counts as dead; JAX takes 14 to 28
_OVER = "over"


class StallTimer:
    """How long nothing was finished. Time in which this process itself was stopped does not count."""

    def __init__(self, minutes: float) -> None:
        """Take the setting parallel.stall_minutes; 0: never a stall."""
        self._limit = 60 * minutes
        self._idle = 0.0
        self._last = "the start"

    def progressed(self, what: str) -> None:
        """Note that something was finished."""
        self._idle, self._last = 0.0, what

    def check(self, seconds: float) -> str:
        """What is wrong after another `seconds`; "" for nothing."""
        self._idle += seconds
        if not self._limit or self._idle < self._limit:
            return ""
        return (
            f"nothing was finished for {self._limit / 60:g} minutes (parallel.stall_minutes), the last thing was "
            f"{self._last}; this process hangs, or another one that it waits for"
        )


class Heartbeat:
    """Heartbeats of all processes; the first one checks the others (and JAX, in them, the first)."""

    def __init__(self) -> None:
        self._number = 0
        self._seen: dict[str, tuple[str, int]] = {}  # process -> its last heartbeat, and when it was new

    def check(self) -> str:
        """Publish a heartbeat; what is wrong with those of others, "" for nothing. To be called every LOOK_SECONDS."""
        self._number += 1
        coordination.publish(f"heartbeats/{jax.process_index()}", str(self._number), overwrite=True)
        return self.judge(coordination.read_all("heartbeats")) if jax.process_index() == 0 else ""

    def judge(self, heartbeats: dict[str, str]) -> str:
        """As `check`, of the last heartbeat of each process by its name, "heartbeats/3"."""
        for name, beat in heartbeats.items():
            if self._seen.get(name, ("", 0))[0] != beat:
                self._seen[name] = beat, self._number
            elif beat != _OVER and (self._number - self._seen[name][1]) * LOOK_SECONDS >= SILENT_SECONDS:
                process = coordination.process_name(int(name.rpartition("/")[2]))
                return f"{process} gave no heartbeat for {SILENT_SECONDS:g} seconds: it died, or was stopped"
        return ""

    @staticmethod
    def end() -> None:
        """Publish that no more heartbeats will come, and nothing is wrong."""
        coordination.publish(f"heartbeats/{jax.process_index()}", _OVER, overwrite=True)


class Watchdog:
    """Watches over a run from the reading of its inputs to its end; use it as a context manager.

    Raises `PreemptedError` at the end of the block where the run was asked to end meanwhile.
    """

    def __init__(self, config: Config) -> None:
        self.preemption = Preemption(config.run.output)
        self.stall = StallTimer(config.parallel.stall_minutes)
        self._heartbeat = Heartbeat()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._signals = Signals()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()
        self._signals.wake()
        self._thread.join()
        self._signals.close()
        if kind is None and coordination.is_distributed():
            Heartbeat.end()
        if kind is None and self.preemption.noticed:
            self.preemption.say(NOTHING_NEW)
            raise self.preemption.error()  # what comes after this run is for the next process

    def go(self) -> None:
        """Begin a computation of all processes, see `Preemption.go`; also a sign that nothing hangs."""
        self.preemption.go()
        self.stall.progressed(f"the start of computation {self.preemption.done}")

    def _watch(self) -> None:
        while not self._over.is_set():
            self._signals.wait(LOOK_SECONDS)
            if self._signals.times(signal.SIGINT) > 1:
                end_at_once()
            for number in (signal.SIGTERM, signal.SIGINT):
                if self._signals.times(number):
                    self.preemption.notice(number)
            if reason := self.stall.check(LOOK_SECONDS):
                _end_stalled(reason)
            if coordination.is_distributed():
                self._look_at_others()
            self.preemption.look()

    def _look_at_others(self) -> None:
        news = coordination.read_all("news")
        if coordination.STALLED in news:
            _end_stalled(f"{news[coordination.STALLED]}; this one ends with it")
        if coordination.FAILED in news and not self._over.wait(GRACE_SECONDS):
            _end(f"{news[coordination.FAILED]}; this one ends with it")
        if coordination.STOPPED in news:
            self.preemption.notice(int(news[coordination.STOPPED]))
        if reason := self._heartbeat.check():
            coordination.publish_failure(reason)
            _end(reason)


def _end_stalled(reason: str) -> NoReturn:
    """End all processes, each with the stacks of all its threads."""
    try:
        write_line(f"distil-jax: fault: {reason}")
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        if coordination.is_distributed():
            coordination.publish(coordination.STALLED, f"{coordination.process_name(jax.process_index())}: {reason}")
            # A process that is gone ends the others before they print anything, and the first one does so at once.
            time.sleep((1 if jax.process_index() else 3) * coordination.DELIVERY_SECONDS)
    finally:  # even where nothing can be printed
        os._exit(1)


def _end(reason: str) -> NoReturn:
    """End this process, which cannot continue."""
    write_line(f"distil-jax: fault: {reason}")
    exit_now(1)
