"""Processes that measure on request, so that two systems can be measured interleaved on one machine.

A worker reads requests from standard input and writes replies to standard output, a JSON line each. All other output
goes to standard error. Between requests it waits and computes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distil_jax.errors import FaultError, UserError, one_line

Reply = dict[str, Any]
_TAIL = 600  # characters of a dead worker's last output


class Worker:
    """A subprocess that runs `serve`; use it as a context manager, which ends it."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Start it.

        Args:
            name: what messages call it.
            command: program and arguments.
            environment: the whole environment; None: this process's.
        """
        self.name = name
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (closed by close)
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=dict(os.environ if environment is None else environment),
        )

    def ask(self, do: str, **arguments: Any) -> Reply:
        """Send a request and wait for the reply.

        Raises:
            UserError: the worker found a mistake of the user's.
            FaultError: it died or failed; the message has its last output. `WorkerDiedError.killed` tells a kill.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            raise WorkerDiedError(self.name, status, self._last_output())
        answer = json.loads(line)
        if "mistake" in answer:
            raise UserError(answer["mistake"])
        if "failure" in answer:
            raise FaultError(f"{self.name}: {answer['failure']}")
        return answer

    def _last_output(self) -> str:
        self._errors.flush()
        self._errors.seek(0)
        lines = [line for line in self._errors.read().strip().splitlines() if line.strip()]
        return one_line(" ".join(lines[-3:]), _TAIL)

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class WorkerDiedError(FaultError):
    """A worker ended without an answer; `killed` where the system did it, as it does when memory runs out."""

    def __init__(self, name: str, status: int, output: str) -> None:
        super().__init__(f"{name}: its process ended with status {status}: {output or 'it printed nothing'}")
        self.killed = status in (-9, 137)


def serve(handlers: Mapping[str, Callable[..., Reply]]) -> None:
    """Reply requests until standard input ends: `{"do": name, **arguments}` calls handlers[name](**arguments)."""
    with _reply_stream() as output:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = handlers[request.pop("do")](**request)
            except UserError as mistake:
                answer = {"mistake": str(mistake)}
            except Exception as error:  # the process that asked decides
                import traceback

                traceback.print_exc()
                answer = {"failure": one_line(f"{type(error).__name__}: {error}", _TAIL)}
            output.write(json.dumps(answer) + "\n")
            output.flush()


@contextlib.contextmanager
def _reply_stream() -> Iterator[Any]:
    """Standard output for replies alone; what libraries print goes to standard error."""
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with own:
        yield own


def pin(cores: Sequence[int]) -> None:
    """Let this process (and the threads it will start) run on these cores only; on all where none are given."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(cores))


def peak_memory() -> int:
    """Peak of this process's resident memory, bytes.

    getrusage would also count the process that started this one, at the moment of the fork.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    except (OSError, StopIteration):
        import resource

        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return size if sys.platform == "darwin" else 1024 * size
