"""What the comparisons share: who runs in which environment, rounds by turns, and what to print of them."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distil_jax.benchmark.process import Worker
from distil_jax.benchmark.report import machine_lines
from distil_jax.benchmark.timing import Timing, noise_note, summarise
from distil_jax.cpu import MALLOC_SETTINGS, cpu_environment
from distil_jax.errors import FaultError, UserError
from distil_jax.runs import require_writable

INSIDE = "--inside"  # a script's own flag: it has been started with the environment that it needs
HERE = Path(__file__).resolve().parent
INSTALLED, FAIREST = "as installed", "fairest"
TORCH_SETTINGS = {"installed": INSTALLED, "fairest": FAIREST}  # as --settings has them
MODEL_SIZES = {
    "base": {"num_layers": 12, "hidden_size": 768, "num_heads": 12, "intermediate_size": 3072},
    "tiny": {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64},
}
# On processors of other vendors MKL takes slower code paths; these two functions are how it asks.
_SHIM = "int mkl_serv_intel_cpu_true(void) { return 1; }\nint mkl_serv_intel_cpu(void) { return 1; }\n"


def vendor_shim(folder: Path) -> str:
    """Path of a library that, preloaded, has MKL take its fastest code on every processor; "" where none is needed.

    Raises:
        FaultError: there is no C compiler.
    """
    try:
        if "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
            return ""
    except OSError:
        return ""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise FaultError("the fairest setting of PyTorch on this processor needs a C compiler (gcc); install one")
    source, library = folder / "vendor.c", folder / "vendor.so"
    source.write_text(_SHIM, encoding="utf-8")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source)], check=True)
    return str(library)


def require_cpp() -> None:
    """`torch.compile` on CPU writes C++; `FaultError` where nothing compiles it."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        raise FaultError("torch.compile on CPU needs a C++ compiler (g++); install one, or leave the compile sides out")


def environment(system: str, setting: str, folder: Path, device: str = "cpu") -> dict[str, str]:
    """The environment of a side's process.

    Args:
        system: "jax" has what its command line sets by itself, in every setting; "torch" the same allocator settings
            and `vendor_shim` in the fairest one, nothing otherwise.
        setting: `INSTALLED` or `FAIREST`.
        folder: for the shim.
        device: "cpu" or "cuda", which JAX is held to: on a machine with a GPU it would take that whatever PyTorch does.
    """
    plain = {name: value for name, value in os.environ.items() if name not in (*MALLOC_SETTINGS, "LD_PRELOAD")}
    plain["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    plain["HF_HUB_OFFLINE"] = "1"
    if system == "jax":
        # Another system shares the device: neither may take all of its memory at its start.
        plain |= {"JAX_PLATFORMS": device, "JAX_COMPILATION_CACHE_DIR": "", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        return {**plain, **cpu_environment(plain, "any")}
    if setting == INSTALLED:
        return plain
    shim = vendor_shim(folder)
    return {**plain, **MALLOC_SETTINGS, **({"LD_PRELOAD": shim} if shim else {})}


def start(name: str, script: str, env: Mapping[str, str]) -> Worker:
    """A worker that runs a script of this folder."""
    return Worker(name, [sys.executable, str(HERE / script)], env)


def run_inside(script: str, argv: Sequence[str] | None, device: str = "cpu", **settings: str) -> int:
    """Run a script again as `INSIDE`, with our side's environment, which malloc and JAX read at a process's start.

    Args:
        script: its path.
        argv: its arguments; None: this process's own.
        device: "cpu" or "cuda".
        **settings: further variables.

    Returns:
        Its status.
    """
    command = [sys.executable, script, *(sys.argv[1:] if argv is None else argv), INSIDE]
    env = {**environment("jax", INSTALLED, Path(), device), **settings}
    return subprocess.run(command, env=env, check=False).returncode


def interleave(workers: Mapping[str, Worker], rounds: int, request: Mapping[str, Any]) -> dict[str, Timing]:
    """Ask every worker for a round, `interleave_calls`."""

    def asking(worker: Worker) -> Callable[[], float]:
        return lambda: worker.ask("round", **request)["seconds"]

    return interleave_calls({name: asking(worker) for name, worker in workers.items()}, rounds)


def interleave_calls(calls: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Timing]:
    """Call all, one at a time, forwards and backwards by turns, so that none always comes first; each tells seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds):
        for name in list(calls) if number % 2 == 0 else list(calls)[::-1]:
            seconds[name].append(calls[name]())
    return {name: summarise(found) for name, found in seconds.items()}


def noise_lines(timings: Mapping[str, Timing]) -> list[str]:
    """A line for each timing that is too noisy to quote."""
    return [line for name, timing in timings.items() if (line := noise_note(name, timing))]


def say(about: str, line: str) -> None:
    """Tell on standard error how far it is."""
    print(f"{about}: {line}", file=sys.stderr, flush=True)


def footer(notes: Iterable[str], machine: Mapping[str, Any], command: str) -> str:
    """What stands below every table: what to know, the machine, how it was made."""
    lines = "\n".join(f"- {note}" for note in dict.fromkeys(notes))
    about = f"{machine_lines(machine)}\n- command: {command}"
    return f"{lines}\n\n{about}" if lines else about


def finish(text: str, output: str, numbers: Any = None) -> None:
    """Print a result; where a file is named, write it there, and what was measured to FILE.json."""
    print(text, flush=True)
    if not output:
        return
    path = Path(output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
        if numbers is not None:
            Path(f"{output}.json").write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror}); it stands above") from None


def positive(text: str) -> int:
    """A whole number above 0, as a type of argparse."""
    if not re.fullmatch(r"[0-9]+", text) or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def core(text: str) -> int:
    """A processor core that this process may run on, as a type of argparse."""
    there = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    if not re.fullmatch(r"[0-9]+", text) or int(text) not in there:
        raise argparse.ArgumentTypeError(f"{text!r} is none of the cores {', '.join(map(str, there))}")
    return int(text)


def output_file(text: str) -> str:
    """A file that can be written, with FILE.json beside it, as a type of argparse; "" is none."""
    if text:
        try:
            require_writable("", Path(text), Path(f"{text}.json"))
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error).strip()) from None
    return text


def exit_status(name: str, main: Callable[[], int]) -> int:
    """The status that a script ends with: `main`'s own, or 2 for a mistake, 1 for a fault, each printed in one line."""
    try:
        return main()
    except UserError as mistake:
        print(f"{name}: {mistake}", file=sys.stderr)
        return 2
    except FaultError as fault:
        print(f"{name}: {fault}", file=sys.stderr)
        return 1


def command_line(arguments: Sequence[str] | None = None) -> str:
    """How this script was called; None: with the process's own arguments."""
    given = sys.argv[1:] if arguments is None else arguments
    shown = shlex.join(word for word in given if word != INSIDE)
    return f"python benchmarks/{Path(sys.argv[0]).name} {shown}".rstrip()
