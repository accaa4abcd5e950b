"""A `distil-jax` command with a delay at a chosen event, so that a test can interrupt it there.

    python benchmarks/delayed_command.py MOMENT NUMBER SECONDS SIGN COMMAND ...

From the NUMBER-th (from 1) event of MOMENT on, each event takes SECONDS more. At the first of them the file SIGN is
written. Moments:

    inputs      a corpus is opened
    compile     the program of a step is looked up; the delay is inside the compiler, in one call that Python cannot end
    evaluation  a batch of the held-out set is about to be computed
    batch       the rows of a batch are read
    step        a step is about to be computed
    raise       a step is about to be computed, and raises ValueError after the SECONDS

`launch` starts such commands, as one process of a run or as two.
"""

from __future__ import annotations

import dataclasses
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GUARD_SECONDS = 600.0  # only ends what hangs
ENDLESS = 1e6  # seconds


@dataclasses.dataclass(frozen=True)
class Delay:
    """Where a process is delayed; see the module's text."""

    moment: str = ""
    number: int = 1
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Ended:
    """A finished process: exit status, output, and seconds since the test interrupted it."""

    status: int
    out: str
    err: str
    seconds: float


class Launched:
    """One or two processes of a run; use it as a context manager, which leaves none of them behind."""

    def __init__(self, command: list[str], delays: list[Delay], folder: Path, environment: Mapping[str, str]) -> None:
        """Start `command` in one process for each of `delays`; `folder` is for files of this object."""
        folder.mkdir(parents=True, exist_ok=True)
        cluster = []
        if len(delays) > 1:
            cluster = ["--parallel.coordinator", f"localhost:{_free_port()}", "--parallel.num-processes", "2"]
        self._signs = [folder / f"sign{number}" for number in range(len(delays))]
        self.processes = []
        for number, (delay, sign) in enumerate(zip(delays, self._signs, strict=True)):
            sign.unlink(missing_ok=True)
            arguments = [delay.moment or "none", str(delay.number), str(delay.seconds), str(sign), *command, *cluster]
            arguments += ["--parallel.process-id", str(number)] if cluster else []
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, __file__, *arguments],
                    env={**os.environ, "PYTHONPATH": str(ROOT), "DISTIL_JAX_RESTART": "0", **environment},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()

    def wait_for_signs(self, *numbers: int) -> None:
        """Wait until the processes of these numbers (none: all) are held up."""
        signs = [self._signs[number] for number in numbers] or self._signs
        end = time.monotonic() + GUARD_SECONDS
        while not all(sign.exists() for sign in signs):
            for process in self.processes:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"ended too early: {process.communicate()}")
            time.sleep(0.02)

    def send(self, signum: int, *numbers: int) -> None:
        """Send a signal to the processes of these numbers, none: all."""
        for number in numbers or range(len(self.processes)):
            self.processes[number].send_signal(signum)

    def ends(self, *numbers: int) -> list[Ended]:
        """Wait for the processes of these numbers, none: all."""
        began, found = time.monotonic(), []
        for number in numbers or range(len(self.processes)):
            process = self.processes[number]
            out, err = process.communicate(timeout=GUARD_SECONDS)
            found.append(Ended(process.returncode, out, err, time.monotonic() - began))
        return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class _Delayer:
    def __init__(self, number: int, seconds: float, sign: str) -> None:
        self._left, self._seconds, self._sign = number, seconds, sign

    def reached(self, moment: str) -> None:
        self._left -= 1
        if self._left > 0:
            return
        Path(self._sign).touch()
        if moment == "compile":
            _compile_long()
        else:
            time.sleep(self._seconds)
        if moment == "raise":
            raise ValueError("something is wrong")


def _compile_long() -> None:
    """Keep XLA busy for a minute or more, in one call."""
    import jax
    import jax.numpy as jnp

    def program(x: Any) -> Any:
        for _ in range(1500):
            x = jnp.tanh(x @ x) + jnp.sort(x, axis=0)
        return x

    jax.jit(program).lower(jnp.ones((16, 16))).compile()


def _patch(moment: str, delayer: _Delayer) -> None:
    from distil_jax.training import compiled_step, text_run

    def before(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def delayed(*arguments: Any, **settings: Any) -> Any:
            delayer.reached(moment)
            return function(*arguments, **settings)

        setattr(owner, name, delayed)

    if moment == "inputs":
        before(text_run, "open_corpus")
    elif moment == "compile":
        before(compiled_step.CompiledStep, "prepare")
    elif moment in ("step", "raise"):
        before(compiled_step.CompiledStep, "__call__")
    elif moment == "batch":
        _patch_batches(delayer)
    elif moment == "evaluation":
        _patch_evaluation(delayer)


def _patch_batches(delayer: _Delayer) -> None:
    from distil_jax.training import text_run

    make = text_run.training_batches

    def batches(*arguments: Any, **settings: Any) -> Any:
        for rows in make(*arguments, **settings):
            delayer.reached("batch")
            yield rows

    text_run.training_batches = batches


def _patch_evaluation(delayer: _Delayer) -> None:
    from distil_jax.training import text_run

    make = text_run.make_evaluator

    def make_evaluator(*arguments: Any, **settings: Any) -> Any:
        evaluate = make(*arguments, **settings)

        def measure(params: Any, frozen: Any, before_batch: Any) -> Any:
            def slow() -> None:
                delayer.reached("evaluation")
                before_batch()

            return evaluate(params, frozen, slow)

        return measure

    text_run.make_evaluator = make_evaluator


def main(moment: str, number: int, seconds: float, sign: str, command: list[str]) -> None:
    """Run `command` as `python -m distil_jax.cli` does, with the delay."""
    delayer = _Delayer(number, seconds, sign)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores Ctrl-C, and so its children

    from distil_jax.runs import startup as runtime

    start = runtime.start

    def start_then_patch(config: Any) -> None:
        start(config)  # first: it decides which devices JAX finds
        _patch(moment, delayer)

    runtime.start = start_then_patch
    sys.argv = ["distil-jax", *command]
    runpy.run_module("distil_jax.cli", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4], sys.argv[5:])
