"""A `distil-jax` command that kills itself (SIGKILL) at a chosen event.

    python benchmarks/killed_command.py MOMENT NUMBER SECONDS FOLDER COMMAND ...

FOLDER is the run's. The kill comes SECONDS after the NUMBER-th (from 1) of the events that MOMENT stands for, before
that event takes place where SECONDS is 0:

    start       a file of the run's folder is made or replaced, before anything is trained
    save        something is made in the temporary folder of a checkpoint
    commit      a part of a checkpoint, or all of it, gets its final name
    deletion    a checkpoint goes into the trash, or a file in there goes, or one of an unfinished checkpoint
    metrics     a row of metrics is half written, or the file is cut back and replaced
    compile     a program is given to the compiler
    evaluation  a measurement of the held-out set begins

A command without such an event ends as usual. `kill_runs.py` uses this.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

MOMENTS = ("start", "save", "commit", "deletion", "metrics", "compile", "evaluation")
_UNFINISHED = ".orbax-checkpoint-tmp"
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir")


class _Aim:
    """Counts the events of one moment, and kills."""

    def __init__(self, moment: str, number: int, seconds: float) -> None:
        self._moment, self._left, self._seconds = moment, number, seconds
        self._lock = threading.Lock()

    def reached(self, moment: str | None) -> bool:
        """Note an event; true where the kill is due, which comes now or from a timer."""
        if moment != self._moment:
            return False
        with self._lock:
            self._left -= 1
            if self._left:
                return False
        if self._seconds:
            threading.Timer(self._seconds, _die).start()
        else:
            _die()
        return True


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def moment_of(event: str, arguments: tuple[Any, ...], folder: str) -> str | None:
    """Which moment one of Python's audit events belongs to; None for all that change nothing of a run."""
    if event not in _CHANGES and not (event == "open" and any(letter in (arguments[1] or "r") for letter in "wxa+")):
        return None
    paths = [os.fsdecode(one) for one in arguments[: 2 if event == "os.rename" else 1] if not isinstance(one, int)]
    if event in ("os.remove", "os.rmdir") and arguments[-1] != -1:  # files of a whole folder: names relative to it
        paths = [os.path.join(os.readlink(f"/proc/self/fd/{arguments[-1]}"), path) for path in paths]
        if any(path.startswith(f"{folder}/checkpoints") for path in paths):
            return "deletion"
    if any("/trash/" in path or path.endswith("/trash") for path in paths):
        return "deletion"
    if any(_UNFINISHED in path for path in paths):
        return "commit" if event == "os.rename" and not paths[-1].endswith(_UNFINISHED) else "save"
    if any(os.path.basename(path).startswith("metrics.") for path in paths):
        return "metrics"
    if any(path.startswith(f"{folder}/") and "/checkpoints" not in path for path in paths):
        return "start"
    return None


def _watch_metrics(aim: _Aim) -> None:
    """Rows of metrics are written in two halves, with a moment between them."""
    from distil_jax.runs import MetricsWriter

    begin = MetricsWriter.__init__

    class Halves:
        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, text: str) -> None:
            self._file.write(text[: len(text) // 2])
            self._file.flush()
            aim.reached("metrics")
            self._file.write(text[len(text) // 2 :])

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    def begin_in_halves(self: Any, *arguments: Any, **settings: Any) -> None:
        begin(self, *arguments, **settings)
        self._file = self._file and Halves(self._file)

    MetricsWriter.__init__ = begin_in_halves  # type: ignore[method-assign]


def _watch_evaluations(aim: _Aim) -> None:
    import dataclasses

    from distil_jax.training import finetune, loop, text_run

    def train(spec: Any, devices: Any, watch: Any) -> Any:
        def make_evaluator(devices: Any) -> Callable[..., Any] | None:
            measure = spec.make_evaluator(devices)

            def evaluate(*arguments: Any) -> Any:
                aim.reached("evaluation")
                return measure(*arguments)

            return None if measure is None else evaluate

        return loop.run_training(dataclasses.replace(spec, make_evaluator=make_evaluator), devices, watch)

    text_run.run_training = finetune.run_training = train


def main(moment: str, number: int, seconds: float, folder: str, command: list[str]) -> None:
    """Run `command` as `python -m distil_jax.cli` does, with the aim taken."""
    import jax

    aim, folder = _Aim(moment, number, seconds), os.path.abspath(folder)
    if moment == "metrics":
        _watch_metrics(aim)
    if moment == "evaluation":
        _watch_evaluations(aim)

    def note_compilation(event: str, **_: Any) -> None:
        aim.reached("compile" if event.endswith("/compile_requests_use_cache") else None)

    jax.monitoring.register_event_listener(note_compilation)
    sys.addaudithook(lambda event, arguments: aim.reached(moment_of(event, arguments, folder)))
    sys.argv = ["distil-jax", *command]
    runpy.run_module("distil_jax.cli", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if len(sys.argv) < 6 or sys.argv[1] not in MOMENTS:
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4], sys.argv[5:])
